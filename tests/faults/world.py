"""What the harness runs: two small worlds of images, and the command lines of a whole project on them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dassl.clip import cached_clip
from tests.fixtures import foreign_checkpoints
from tests.fixtures.image_folders import write_pets

BREEDS = ("abyssinian", "beagle", "bengal", "boxer", "great_pyrenees", "pug")
COUNTS = (2, 1, 2)  # images a class of a toy task
TASKS = "toy_digits,toy_shapes"
SMALL = [
    *("MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", "(32,32)", "DATALOADER.NUM_WORKERS", "0"),
    *("DATASET.NUM_SHOTS", "4", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "3"),
    *("TRAINER.COOP.PREC", "fp32", "TEST.FINAL_MODEL", "best_val", "FEATURES.VIEWS", "2"),
]
SHORT = [
    *("TRAINER.CONDU.ITERATIONS", "6", "TRAINER.CONDU.ROUND", "2", "OPTIM.WARMUP_STEPS", "2"),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.LR", "1e-3"),
]
CONFIG = {"CoOp": "CoOp/vit_b16_ep100_ctxv1", "CoOp_LMC": "CoOp_LMC/released", "FineTune": "FineTune/toy"}


@dataclass(frozen=True)
class Scene:
    """A command on what an earlier one has left. before: that scene, "" for nothing; broken: where the earlier attempt
    at the same lines was killed ([kind, word, number], see child.py); says: its result is what it prints."""

    before: str
    lines: list
    broken: tuple = ()
    says: bool = False


class World:
    """Images and runs below `folder`: data/ is written once, out/ by the jobs. small: fewer jobs, one task."""

    def __init__(self, folder, small=False):
        self.small, self.tasks = small, TASKS.split(",")[1] if small else TASKS
        self.seed, self.subset = "1", "base"
        self.folder = Path(folder).absolute()
        self.data, self.out = self.folder / "data", self.folder / "out"
        if not self.data.is_dir():
            write_pets(str(self.data), classes=BREEDS, counts=(6, 2, 4))

    def train(self, name, *more, trainer="CoOp", subset=""):
        """The line of a run into out/`name`."""
        subset = subset or self.subset
        return [
            *("train.py", "--root", self.data, "--seed", self.seed, "--trainer", trainer),
            *("--output-dir", self.out / name, "--dataset-config-file", "configs/datasets/oxford_pets.yaml"),
            *("--config-file", f"configs/trainers/{CONFIG[trainer]}.yaml", "DATASET.SUBSAMPLE_CLASSES", subset),
            *(*SMALL, "TRAINER.MODAL", "base2novel", "FEATURES.DIR", self.out / "features", *more),
        ]

    def tests(self, name, **keys):
        """Lines that evaluate out/`name` on both halves of the classes."""
        flags = ("--eval-only", "--model-dir", self.out / name)
        return [self.train(f"{name}_{half}", *flags, subset=half, **keys) for half in ("base", "new")]

    def stream(self, action="train", out="", config="toy_ft"):
        """The line that trains, or evaluates, a stream of two tasks."""
        run = self.out / "mtil" / config / "order" / "seed1"
        place = ["--run", run, "--out", run / out] if out else ["--out", run]
        words = ["--order", self.tasks, "--cfg", config, "--root", self.data, "--seed", self.seed, *place, *SHORT]
        return ["-m", "scripts.condu.stream", action, *words]

    def report(self):
        """The line that writes tables, figures and the page."""
        files = ("--out", self.out, "--html", self.out / "report.html")
        return ["-m", "mergetune.report", self.out, *files, *([] if self.small else ["--figures"]), "--latex"]

    def jobs(self):
        """{name: lines}: each starts with all that those before it have done."""
        continued = {"trainer": "CoOp_LMC"}
        own = {
            "stage 1": [self.train("coop"), *self.tests("coop")],
            "stage 2": [self.train("lmc", "--resume-coop", self.out / "coop", **continued)],
            "stage 2 tests": self.tests("lmc", **continued),
            "stream": [self.stream()],
            "stream test": [self.stream("eval-agnostic", "agnostic")],
            "report": [self.report()],
        }
        if self.small:
            own = {
                "stage 1": [self.train("coop"), self.tests("coop")[0]],
                "stream": own["stream"],
                "report": own["report"],
            }
        jobs, before = {}, []
        for name, lines in own.items():
            jobs[name] = before + lines
            before = before + lines if name != "report" else before
        return jobs

    def scenes(self):
        """{name: Scene}: one of each kind of command, each typed once on what the scene before it has left."""
        out, theirs = self.out, self.out / "theirs" / "adapter_learner" / "model.pth.tar-5"
        stage2 = self.train("lmc", "--resume-coop", out / "coop", trainer="CoOp_LMC")
        merge = ["-m", "mergetune.merge", "--method", "ties", "--density", "0.2", "--scale", "1", out / "coop"]
        merge += ["--out", out / "merged", "--eval", "new"]
        image = self.data / "oxford_pets" / "images" / "abyssinian_0.png"
        return {
            "train": Scene("", [self.train("coop")]),
            "train goes on": Scene("", [self.train("coop")], broken=("+", "training", 3)),
            "eval": Scene("train", [self.tests("coop")[1]]),
            "predict": Scene("train", [["-m", "mergetune.predict", out / "coop", image]], says=True),
            "stage 2": Scene("train", [stage2]),
            "path card": Scene("stage 2", [["-m", "mergetune.path_card", out / "lmc", "--images", "4"]]),
            "merge": Scene("train", [merge]),
            "merge again": Scene("merge", [[*merge[:5], "0.5", *merge[6:], "--overwrite"]]),
            "report": Scene("path card", [self.report()]),
            "fine-tune": Scene("", [self.train("tuned", trainer="FineTune")]),
            "ensemble": Scene("fine-tune", [["-m", "mergetune.ensemble", out / "tuned", "--alphas", "0,0.5"]]),
            "import": Scene("theirs", [["-m", "mergetune.import_checkpoint", theirs, "--out", out / "imported"]]),
            "stream": Scene("", [self.stream()]),
            "stream goes on": Scene("", [self.stream()], broken=("+", "fusing", 4)),
            "stream test": Scene("stream", [self.stream("eval-mtil", "mtil")]),
        }

    def write_theirs(self, folder):
        """What the scene "import" reads: a checkpoint of another code base."""
        torch.manual_seed(int(self.seed))
        sizes = foreign_checkpoints.tiny_sizes(cached_clip("tiny"), 2)
        left_out = {"tokenized_prompts", *foreign_checkpoints.towers(sizes)}
        state = {key: value for key, value in foreign_checkpoints.mma(sizes).items() if key not in left_out}
        foreign_checkpoints.write(state, Path(folder) / "theirs" / "adapter_learner" / "model.pth.tar-5", epoch=5)
