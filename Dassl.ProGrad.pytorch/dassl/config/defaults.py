"""Every engine key with its default, meaning and range: the union of upstream Dassl and its ProGrad fork, and our own.

A key is a row here (see keys.py for what a row may say); docs/config.md is made of them. A key that begins with one of
_TRAINING has the role "training" without saying so: evaluations do not compare it.
"""

import re
from dataclasses import replace

from yacs.config import CfgNode as CN

from .keys import Key, Keys, add_missing, build_node, is_ascending, is_odd

SAMPLERS = "dassl.data.samplers:SAMPLERS"
TRANSFORMS = "dassl.data.transforms:TRANSFORMS"
RESIZE_MODES = "dassl.data.transforms.transforms:RESIZE_MODES"
SUBSETS = "dassl.data.fewshot:SUBSETS"
COUNTS = ("train_x", "train_u", "smaller_one")
PROTOCOLS = ("base2novel", "cross", "dg", "fewshot", "robust", "sweep", "mtil")

_CONFIDENCE = Key(0.95, "probability of a label that counts", ge=0, le=1)
_EPS = Key(1.0, "step of the perturbation", ge=0)
_ALPHA = Key(0.5, "of the perturbed images' loss", ge=0, le=1)
_CROSSGRAD = {"EPS_F": _EPS, "EPS_D": _EPS, "ALPHA_F": _ALPHA, "ALPHA_D": _ALPHA}
_WEIGHT_U = Key(1.0, "of the unlabelled loss", ge=0)
_EMA = Key(0.999, "of the moving average", ge=0, le=1)
_STRONG = Key((), "of the strong view, as INPUT.TRANSFORMS", item=str, choices=TRANSFORMS)
_DAEL = {"WEIGHT_U": Key(0.5, "of the unlabelled loss", ge=0), "CONF_THRE": _CONFIDENCE, "STRONG_TRANSFORMS": _STRONG}
_MEANTEACHER = {"WEIGHT_U": _WEIGHT_U, "EMA_ALPHA": _EMA, "RAMPUP": Key(5, "epochs to the whole weight", ge=0)}

KEYS: dict[str, Key] = {
    "VERSION": Key(1, "of the form of the config"),
    "OUTPUT_DIR": Key("./output", "where log, checkpoints and results.json go", path=True, role="incidental"),
    "RESUME": Key("", "another run's folder to resume from", path=True),
    "RESUME_COOP": Key("", "stage-1 folder that a stage-2 trainer continues from (--resume-coop)", path=True),
    "PRESET": Key("", "name of a published recipe, set by its yaml and recorded in results.json", role="incidental"),
    "SEED": Key(-1, "seeds Python, numpy, torch and views; negative: views alone are seeded", le=2**32 - 1),
    "DETERMINISTIC": Key(False, "torch's deterministic algorithms, cuDNN's tuner off", role="incidental"),
    "USE_CUDA": Key(True, "the GPU, if there is one: CUDA, else a Mac's (mps)", role="incidental"),
    "VERBOSE": Key(True, "log what is built", role="incidental"),
    "INPUT.SIZE": Key((224, 224), "height, width", ge=1, length=2),
    "INPUT.INTERPOLATION": Key("bilinear", "of every resize", choices="dassl.data.transforms:INTERPOLATION_MODES"),
    "INPUT.RESIZE": Key("shortest", "of test images: shortest side, or both at once (SigLIP)", choices=RESIZE_MODES),
    "INPUT.TRANSFORMS": Key((), "augmentations and normalisation, by name", item=str, choices=TRANSFORMS),
    "INPUT.NO_TRANSFORM": Key(False, "images as they are opened"),
    "INPUT.MAX_PIXELS": Key(0, "of an image file; 0: 89 million, and fewer where the file has few bytes", ge=0),
    "INPUT.EXIF_ORIENTATION": Key(False, "turn images as their EXIF data say; Dassl and torchvision do not"),
    "INPUT.PIXEL_MEAN": Key([0.485, 0.456, 0.406], "of the channels, for normalize", ge=0, length=3),
    "INPUT.PIXEL_STD": Key([0.229, 0.224, 0.225], "of the channels, for normalize", gt=0, length=3),
    "INPUT.VIEW_SEEDS": Key(True, "augmentation drawn per (seed, view, image); False: from the global streams"),
    "INPUT.CROP_PADDING": Key(4, "pixels, for random_crop", ge=0),
    "INPUT.RRCROP_SCALE": Key((0.08, 1.0), "share of the area, random_resized_crop", ge=0, length=2, test=is_ascending),
    "INPUT.CUTOUT_N": Key(1, "squares, for cutout", ge=0),
    "INPUT.CUTOUT_LEN": Key(16, "their side, pixels", ge=0),
    "INPUT.GN_MEAN": Key(0.0, "for gaussian_noise"),
    "INPUT.GN_STD": Key(0.15, "for gaussian_noise", ge=0),
    "INPUT.RANDAUGMENT_N": Key(2, "operations an image", ge=0),
    "INPUT.RANDAUGMENT_M": Key(10, "their magnitude", ge=0, le=30),
    "INPUT.COLORJITTER_B": Key(0.4, "brightness", ge=0),
    "INPUT.COLORJITTER_C": Key(0.4, "contrast", ge=0),
    "INPUT.COLORJITTER_S": Key(0.4, "saturation", ge=0),
    "INPUT.COLORJITTER_H": Key(0.1, "hue", ge=0, le=0.5),
    "INPUT.RGS_P": Key(0.2, "probability of randomgrayscale", ge=0, le=1),
    "INPUT.GB_P": Key(0.5, "probability of gaussian_blur", ge=0, le=1),
    "INPUT.GB_K": Key(21, "its kernel, pixels", ge=1, test=is_odd),
    "DATASET.ROOT": Key("", "folder of all data sets", path=True, role="incidental"),
    "DATASET.NAME": Key("", "registered name"),
    "DATASET.SOURCE_DOMAINS": Key((), "for domain adaptation and generalisation", item=str),
    "DATASET.TARGET_DOMAINS": Key((), "for domain adaptation and generalisation", item=str),
    "DATASET.NUM_LABELED": Key(-1, "semi-supervised: labelled images of all classes together; below 1: by NUM_SHOTS"),
    "DATASET.NUM_SHOTS": Key(-1, "images a class; below 1: all"),
    "DATASET.FEWER_SHOTS": Key("refuse", "a class of fewer than NUM_SHOTS; take: all", choices=("refuse", "take")),
    "DATASET.SUBSET": Key("", "an earlier run's subset.json: its few-shot draw instead of one by SEED", path=True),
    "DATASET.SUBSAMPLE_CLASSES": Key("all", "base: first half of the labels, new: the rest", choices=SUBSETS),
    "DATASET.VAL_PERCENT": Key(0.1, "share of the training images that validates", ge=0, le=1),
    "DATASET.STL10_FOLD": Key(-1, "of STL-10; negative: all", le=9),
    "DATASET.CIFAR_C_TYPE": Key("", "corruption"),
    "DATASET.CIFAR_C_LEVEL": Key(1, "its strength", ge=1, le=5),
    "DATASET.ALL_AS_UNLABELED": Key(False, "semi-supervised: labelled images are among the unlabelled too"),
    "DATASET.CUSTOM.PATH": Key("", "your own images: folder of class folders, .csv or .json, below ROOT", path=True),
    "DATASET.CUSTOM.IMAGES": Key("", "Manifest: where its paths start; empty: in the file's folder", path=True),
    "DATASET.CUSTOM.NAMES": Key("", "JSON among the images: {class folder or label: name}, in label order", path=True),
    "DATASET.CUSTOM.PROMPTS": Key(["a photo of a {}."], "first: trains; all: of a stream", nonempty=True, also=str),
    "DATASET.CUSTOM.LEAVE_OUT": Key([], "class folders, or labels of the table, that are left out", item=str),
    "DATASET.CUSTOM.TASK": Key("", "its name in tables and streams; empty: that of the folder or file"),
    "DATASET.CUSTOM.SPLIT": Key([0.5, 0.2, 0.3], "parts of a class: train, val, test", ge=0, le=1, length=3),
    "FEATURES.VIEWS": Key(0, "augmented views an image in the feature bank; 0: pixels every step", ge=0),
    "FEATURES.TEST": Key(True, "frozen image towers: validation and test features from the bank", role="incidental"),
    "FEATURES.DIR": Key("", "of banks; empty: $OUTPUT/features, else output/features", path=True, role="incidental"),
    "FEATURES.STRICT": Key(False, "key the bank by the files' contents, not by size and time", role="incidental"),
    "DATALOADER.NUM_WORKERS": Key(4, "processes a loader", ge=0, role="incidental"),
    "DATALOADER.PERSISTENT": Key(False, "keep workers between epochs", role="incidental"),
    "DATALOADER.K_TRANSFORMS": Key(1, "augmented views a training image", ge=1),
    "DATALOADER.RETURN_IMG0": Key(False, "the image without augmentation too"),
    "DATALOADER.TRAIN_X.SAMPLER": Key("RandomSampler", "of labelled images", choices=SAMPLERS),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Key(32, "of all processes together", ge=1),
    "DATALOADER.TRAIN_X.N_DOMAIN": Key(0, "RandomDomainSampler: domains a batch; below 1: all"),
    "DATALOADER.TRAIN_X.N_INS": Key(16, "RandomClassSampler: images of a class in a batch", ge=1),
    "DATALOADER.TRAIN_U.SAME_AS_X": Key(True, "the four keys of TRAIN_X for unlabelled images too"),
    "DATALOADER.TRAIN_U.SAMPLER": Key("RandomSampler", "of unlabelled images", choices=SAMPLERS),
    "DATALOADER.TRAIN_U.BATCH_SIZE": Key(32, "as TRAIN_X", ge=1),
    "DATALOADER.TRAIN_U.N_DOMAIN": Key(0, "as TRAIN_X"),
    "DATALOADER.TRAIN_U.N_INS": Key(16, "as TRAIN_X", ge=1),
    "DATALOADER.TEST.SAMPLER": Key("SequentialSampler", "of validation and test images", choices=SAMPLERS),
    "DATALOADER.TEST.BATCH_SIZE": Key(32, "of validation and test images", ge=1),
    "MODEL.INIT_WEIGHTS": Key("", "checkpoint that the model starts from", path=True),
    "MODEL.BACKBONE.NAME": Key("", "registered name, a CLIP's name, or its file", path=True),
    "MODEL.BACKBONE.PATH": Key("", "weights file, or the folder that holds it", path=True),
    "MODEL.BACKBONE.PRETRAINED": Key(True, "torchvision's weights, for backbones without text"),
    "MODEL.TEXT_CHUNK": Key(0, "classes in CLIP's text tower at once, run again for gradients; 0: all", ge=0),
    "MODEL.CHECKPOINT_BLOCKS": Key(False, "CLIP's blocks keep their inputs alone, run again for gradients"),
    "MODEL.COMPILE": Key(False, "torch.compile for CLIP's MLPs and the logits: equal to 1e-4", role="incidental"),
    "MODEL.HEAD.NAME": Key("", "empty: none", choices="dassl.modeling.head:HEAD_REGISTRY"),
    "MODEL.HEAD.HIDDEN_LAYERS": Key((), "widths", item=int, ge=1, also=int),
    "MODEL.HEAD.ACTIVATION": Key("relu", "of an mlp", choices="dassl.modeling.head.mlp:ACTIVATIONS"),
    "MODEL.HEAD.BN": Key(True, "batch norms"),
    "MODEL.HEAD.DROPOUT": Key(0.0, "probability", ge=0, le=1),
    "OPTIM.NAME": Key("adam", "optimiser", choices="dassl.optim.optimizer:AVAI_OPTIMS"),
    "OPTIM.LR": Key(0.0003, "learning rate", ge=0),
    "OPTIM.WEIGHT_DECAY": Key(5e-4, "L2 penalty; adamw: decoupled", ge=0),
    "OPTIM.MOMENTUM": Key(0.9, "sgd, rmsprop", ge=0, le=1),
    "OPTIM.SGD_DAMPNING": Key(0, "the key is spelt so in Dassl", ge=0, le=1, also=float),
    "OPTIM.SGD_NESTEROV": Key(False, "Nesterov's momentum"),
    "OPTIM.RMSPROP_ALPHA": Key(0.99, "its moving average", ge=0, le=1),
    "OPTIM.ADAM_BETA1": Key(0.9, "of all Adam kinds", ge=0, lt=1),
    "OPTIM.ADAM_BETA2": Key(0.999, "of all Adam kinds", ge=0, lt=1),
    "OPTIM.STAGED_LR": Key(False, "NEW_LAYERS train at LR, all else at BASE_LR_MULT * LR"),
    "OPTIM.NEW_LAYERS": Key((), "names of layers", item=str, also=str),
    "OPTIM.BASE_LR_MULT": Key(0.1, "for STAGED_LR", ge=0),
    "OPTIM.LR_SCHEDULER": Key("single_step", "schedule", choices="dassl.optim.lr_scheduler:AVAI_SCHEDS"),
    "OPTIM.STEPSIZE": Key((-1,), "epochs a step, below 1: MAX_EPOCH; multi_step: epochs", nonempty=True, also=int),
    "OPTIM.GAMMA": Key(0.1, "factor of a step", ge=0),
    "OPTIM.MAX_EPOCH": Key(10, "epochs", ge=0),
    "OPTIM.GRAD_CLIP": Key(0.0, "largest norm of all gradients together; 0: not clipped", ge=0),
    "OPTIM.WARMUP_EPOCH": Key(-1, "epochs of warm-up; below 1: none"),
    "OPTIM.WARMUP_STEPS": Key(0, "cosine_steps: optimiser steps from 0 to LR", ge=0),
    "OPTIM.WARMUP_TYPE": Key("linear", "of WARMUP_EPOCH", choices=("linear", "constant")),
    "OPTIM.WARMUP_CONS_LR": Key(1e-5, "rate of a constant warm-up", ge=0),
    "OPTIM.WARMUP_MIN_LR": Key(1e-5, "first rate of a linear warm-up", ge=0),
    "OPTIM.WARMUP_RECOUNT": Key(True, "the schedule counts from 0 behind the warm-up"),
    "TRAIN.CHECKPOINT_FREQ": Key(0, "epochs; below 1: only the last", role="incidental"),
    "TRAIN.RESUME_SECONDS": Key(
        5.0, "a killed run loses at most so many, and an epoch; 0: the epoch alone", ge=0, role="incidental"),
    "TRAIN.PRINT_FREQ": Key(10, "batches", ge=1, role="incidental"),
    "TRAIN.COUNT_ITER": Key("train_x", "loader that an epoch is as long as", choices=COUNTS),
    "TRAIN.ACCUMULATE": Key(1, "batches a step: as one large batch, batch norms apart", ge=1),
    "TEST.EVALUATOR": Key("Classification", "registered name", choices="dassl.evaluation.build:EVALUATOR_REGISTRY"),
    "TEST.PER_CLASS_RESULT": Key(False, "accuracy of each class", role="incidental"),
    "TEST.COMPUTE_CMAT": Key(False, "confusion matrix, as cmat.pt", role="incidental"),
    "TEST.OTHERS": Key([], "data sets scored beside new classes; auto: all", item=str, also=str, role="incidental"),
    "TEST.NO_TEST": Key(False, "no test after training"),
    "TEST.SPLIT": Key("test", "of the final test", choices=("val", "test")),
    "TEST.FINAL_MODEL": Key("last_step", "that is tested", choices=("last_step", "best_val")),
    "TEST.SKIP_WARMUP": Key(False, "best_val: not of the epochs of WARMUP_EPOCH, unless there are no others"),
    "TRAINER.NAME": Key("", "registered name"),
    "TRAINER.MODAL": Key("base2novel", "protocol, by which some data sets split", choices=PROTOCOLS),
    # Keys of Dassl's own trainers: other people's yaml files set them
    "TRAINER.MCD.N_STEP_F": Key(4, "steps of the features a batch", ge=1),
    "TRAINER.MME.LMDA": Key(0.1, "of the entropy", ge=0),
    "TRAINER.CDAC.CLASS_LR_MULTI": Key(10, "of the classifier's rate", ge=0),
    "TRAINER.CDAC.RAMPUP_COEF": Key(30, "largest weight of the consistency", ge=0),
    "TRAINER.CDAC.RAMPUP_ITRS": Key(1000, "steps to it", ge=0),
    "TRAINER.CDAC.TOPK_MATCH": Key(5, "largest features that two images share", ge=1),
    "TRAINER.CDAC.P_THRESH": _CONFIDENCE,
    "TRAINER.CDAC.STRONG_TRANSFORMS": _STRONG,
    "TRAINER.SE.EMA_ALPHA": _EMA,
    "TRAINER.SE.CONF_THRE": _CONFIDENCE,
    "TRAINER.SE.RAMPUP": Key(300, "steps to the whole weight", ge=0),
    "TRAINER.M3SDA.LMDA": Key(0.5, "of the distance of moments", ge=0),
    "TRAINER.M3SDA.N_STEP_F": Key(4, "steps of the features a batch", ge=1),
    **{f"TRAINER.DAEL.{name}": key for name, key in _DAEL.items()},
    **{f"TRAINER.CROSSGRAD.{name}": key for name, key in _CROSSGRAD.items()},
    **{f"TRAINER.CG.{name}": key for name, key in _CROSSGRAD.items()},  # the fork's name of it
    "TRAINER.DDAIG.G_ARCH": Key("", "generator"),
    "TRAINER.DDAIG.LMDA": Key(0.3, "of what it adds", ge=0),
    "TRAINER.DDAIG.CLAMP": Key(False, "hold its images within CLAMP_MIN and CLAMP_MAX"),
    "TRAINER.DDAIG.CLAMP_MIN": Key(-1.0, "for CLAMP"),
    "TRAINER.DDAIG.CLAMP_MAX": Key(1.0, "for CLAMP"),
    "TRAINER.DDAIG.WARMUP": Key(0, "epochs without its images"),
    "TRAINER.DDAIG.ALPHA": _ALPHA,
    **{f"TRAINER.DAELDG.{name}": key for name, key in _DAEL.items()},
    "TRAINER.DOMAINMIX.TYPE": Key("crossdomain", "what is mixed"),
    "TRAINER.DOMAINMIX.ALPHA": Key(1.0, "of the beta distribution", gt=0),
    "TRAINER.DOMAINMIX.BETA": Key(1.0, "of the beta distribution", gt=0),
    "TRAINER.ENTMIN.LMDA": Key(1e-3, "of the entropy", ge=0),
    **{f"TRAINER.MEANTEACHER.{name}": key for name, key in _MEANTEACHER.items()},
    **{f"TRAINER.MEANTEA.{name}": key for name, key in _MEANTEACHER.items()},  # the fork's name of it
    "TRAINER.MIXMATCH.WEIGHT_U": Key(100.0, "of the unlabelled loss", ge=0),
    "TRAINER.MIXMATCH.TEMP": Key(2.0, "that sharpens labels", gt=0),
    "TRAINER.MIXMATCH.MIXUP_BETA": Key(0.75, "of the beta distribution", gt=0),
    "TRAINER.MIXMATCH.RAMPUP": Key(20000, "steps to the whole weight", ge=0),
    "TRAINER.FIXMATCH.WEIGHT_U": _WEIGHT_U,
    "TRAINER.FIXMATCH.CONF_THRE": _CONFIDENCE,
    "TRAINER.FIXMATCH.STRONG_TRANSFORMS": _STRONG,
}
# What an evaluation does not read
_TRAINING = (
    "RESUME", "OPTIM.", "TRAIN.", "DATALOADER.TRAIN_", "DATALOADER.K_", "DATALOADER.RETURN_", "FEATURES.VIEWS",
    "INPUT.VIEW_SEEDS", "INPUT.RRCROP", "INPUT.CROP_", "INPUT.CUTOUT", "INPUT.RANDAUGMENT", "INPUT.COLORJITTER",
    "INPUT.RGS_", "INPUT.GB_", "INPUT.GN_", "DATASET.NUM_", "DATASET.FEWER_", "DATASET.SUBSET", "DATASET.ALL_AS_",
    "TEST.NO_TEST", "TEST.FINAL_MODEL", "TEST.SKIP_WARMUP",
)  # fmt: skip
KEYS |= {
    name: replace(key, role="training")
    for name, key in KEYS.items()
    if not key.role and name.startswith(_TRAINING) and name != "RESUME_COOP"
}
RULES: dict[str, Key] = dict(KEYS)  # and the keys of the trainers that are known
_C = cfg_default = build_node(KEYS)  # the second is upstream's name for it
_ENGINE = build_node({name: key for name, key in KEYS.items() if not re.match(r"TRAINER\.\w+\.", name)})


def get_cfg_default() -> CN:
    """A fresh, unfrozen copy of the default tree."""
    return _C.clone()


def declare(keys: Keys) -> None:
    """Let values that are set from now on be held against `keys`; a key that is known stays as it is."""
    for name, key in keys.items():
        RULES.setdefault(name, key)


def complete(cfg: CN) -> CN:
    """Give a cfg that was made from another copy of Dassl's defaults the engine keys it lacks, in place -> cfg.

    Every entry point that takes a whole cfg calls it, so all else reads our own keys as any other.
    """
    if isinstance(cfg, CN):
        add_missing(cfg, _ENGINE)
    return cfg


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Drop from cfg.TRAINER every node but NAME and the trainer's own upper-cased one, in place."""
    for key in list(cfg.TRAINER.keys()):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key, None)
