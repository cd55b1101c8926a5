"""Every engine key with its default: the union of upstream Dassl and its ProGrad fork, and our own.

The type of a default matters: yacs refuses a value of another type.
"""

from yacs.config import CfgNode as CN

_C = CN()

_C.VERSION = 1
_C.OUTPUT_DIR = "./output"
_C.RESUME = ""  # another run's folder to resume from
_C.RESUME_COOP = ""  # stage-1 folder that a stage-2 trainer continues from (--resume-coop)
_C.PRESET = ""  # name of a published recipe, set by its yaml and recorded in results.json
_C.SEED = -1  # negative: nothing is seeded
_C.DETERMINISTIC = False  # torch's deterministic algorithms, cuDNN's tuner off
_C.USE_CUDA = True
_C.VERBOSE = True

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width
_C.INPUT.INTERPOLATION = "bilinear"  # bilinear, bicubic, nearest
_C.INPUT.RESIZE = "shortest"  # test pictures: shortest side, then centre crop; squash: both sides at once (SigLIP)
_C.INPUT.TRANSFORMS = ()
_C.INPUT.NO_TRANSFORM = False
_C.INPUT.MAX_PIXELS = 0  # of an image file; 0: 89 million, and fewer where the file has few bytes
_C.INPUT.EXIF_ORIENTATION = False  # turn images as their EXIF data say; Dassl and torchvision do not
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.VIEW_SEEDS = True  # augmentation drawn per (seed, view, image); False: from the global streams
_C.INPUT.CROP_PADDING = 4
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)
_C.INPUT.CUTOUT_N = 1
_C.INPUT.CUTOUT_LEN = 16
_C.INPUT.GN_MEAN = 0.0
_C.INPUT.GN_STD = 0.15
_C.INPUT.RANDAUGMENT_N = 2
_C.INPUT.RANDAUGMENT_M = 10  # 0 to 30
_C.INPUT.COLORJITTER_B = 0.4
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2  # probability of random greyscale
_C.INPUT.GB_P = 0.5  # probability of Gaussian blur
_C.INPUT.GB_K = 21  # its kernel, pixels

_C.DATASET = CN()
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_LABELED = -1
_C.DATASET.NUM_SHOTS = -1  # images a class; below 1: all
_C.DATASET.SUBSET = ""  # an earlier run's subset.json: its few-shot draw instead of one by SEED
_C.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base (first half of the labels), new (the rest)
_C.DATASET.VAL_PERCENT = 0.1
_C.DATASET.STL10_FOLD = -1
_C.DATASET.CIFAR_C_TYPE = ""
_C.DATASET.CIFAR_C_LEVEL = 1
_C.DATASET.ALL_AS_UNLABELED = False
_C.DATASET.CUSTOM = CN()  # your own pictures: DATASET.NAME ImageFolder or Manifest
_C.DATASET.CUSTOM.PATH = ""  # the folder of class folders, or the .csv or .json file; below ROOT, or absolute
_C.DATASET.CUSTOM.IMAGES = ""  # Manifest: the folder its paths start from; empty: where the file lies
_C.DATASET.CUSTOM.NAMES = ""  # a JSON file among the pictures, {class folder or label: name}, in label order
_C.DATASET.CUSTOM.PROMPTS = ["a photo of a {}."]  # the first one trains; a stream is evaluated with all
_C.DATASET.CUSTOM.TASK = ""  # its name in tables and streams; empty: that of the folder or file
_C.DATASET.CUSTOM.SPLIT = [0.5, 0.2, 0.3]  # train, val, test: parts of each class, for pictures that have none

_C.FEATURES = CN()
_C.FEATURES.VIEWS = 0  # augmented views an image in the feature bank; 0: pixels every step
_C.FEATURES.TEST = True  # frozen image towers: validation and test features from the bank
_C.FEATURES.DIR = ""  # empty: $OUTPUT/features, else output/features
_C.FEATURES.STRICT = False  # key the bank by the files' contents, not by size and time

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
_C.DATALOADER.PERSISTENT = False  # keep workers between epochs
_C.DATALOADER.K_TRANSFORMS = 1
_C.DATALOADER.RETURN_IMG0 = False
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0
_C.DATALOADER.TRAIN_X.N_INS = 16
_C.DATALOADER.TRAIN_U = CN()
_C.DATALOADER.TRAIN_U.SAME_AS_X = True
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PATH = ""  # weights file, or the folder that holds it
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.TEXT_CHUNK = 0  # classes in CLIP's text tower at once, each chunk run again for its gradients; 0: all
_C.MODEL.CHECKPOINT_BLOCKS = False  # blocks of CLIP's towers keep their inputs alone, run again for their gradients
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0  # the key is spelt so in Dassl
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.STAGED_LR = False
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"
_C.OPTIM.STEPSIZE = (-1,)
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
_C.OPTIM.GRAD_CLIP = 0.0  # largest norm of all gradients together; 0: not clipped
_C.OPTIM.WARMUP_EPOCH = -1
_C.OPTIM.WARMUP_STEPS = 0  # cosine_steps: optimiser steps from 0 to LR
_C.OPTIM.WARMUP_TYPE = "linear"
_C.OPTIM.WARMUP_CONS_LR = 1e-5
_C.OPTIM.WARMUP_MIN_LR = 1e-5
_C.OPTIM.WARMUP_RECOUNT = True

_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # epochs; 0: only the last
_C.TRAIN.PRINT_FREQ = 10  # batches
_C.TRAIN.COUNT_ITER = "train_x"  # train_x, train_u, smaller_one
_C.TRAIN.ACCUMULATE = 1  # batches whose mean loss makes a step: that of one large batch, batch norms apart

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
_C.TEST.COMPUTE_CMAT = False
_C.TEST.NO_TEST = False
_C.TEST.SPLIT = "test"
_C.TEST.FINAL_MODEL = "last_step"  # or best_val

# Keys of Dassl's own trainers: other people's yaml files set them.
_DASSL_TRAINERS = {
    "MCD": {"N_STEP_F": 4},
    "MME": {"LMDA": 0.1},
    "CDAC": {
        "CLASS_LR_MULTI": 10,
        "RAMPUP_COEF": 30,
        "RAMPUP_ITRS": 1000,
        "TOPK_MATCH": 5,
        "P_THRESH": 0.95,
        "STRONG_TRANSFORMS": (),
    },
    "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
    "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
    "DAEL": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
    "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "CG": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "DDAIG": {
        "G_ARCH": "",
        "LMDA": 0.3,
        "CLAMP": False,
        "CLAMP_MIN": -1.0,
        "CLAMP_MAX": 1.0,
        "WARMUP": 0,
        "ALPHA": 0.5,
    },
    "DAELDG": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
    "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
    "ENTMIN": {"LMDA": 1e-3},
    "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MEANTEA": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
    "FIXMATCH": {"WEIGHT_U": 1.0, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
}

_C.TRAINER = CN()
_C.TRAINER.NAME = ""
_C.TRAINER.MODAL = "base2novel"  # or cross: how PromptKD-style data sets split
for _name, _keys in _DASSL_TRAINERS.items():
    _C.TRAINER[_name] = CN(_keys)


def get_cfg_default() -> CN:
    """A fresh, unfrozen copy of the default tree."""
    return _C.clone()


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Drop from cfg.TRAINER every node but NAME and the trainer's own upper-cased one, in place."""
    for key in list(cfg.TRAINER.keys()):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key, None)
