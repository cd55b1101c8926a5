"""What is typed of a page: its commands, or shorter ones in their place, each with the reason."""

import re

from tests.fixtures.checkout import commands_of
from tests.fixtures.pages import BLOCK, PAGES, files_to_write

GRID = "three seeds of every dataset"
LINES = "the same grid is typed on reproduce.md, or as single commands on methods.md"
NIGHT = "public data for a night, on a GPU"
PROBE = "output/output_robust/linear_probe/train/toy_objects/LinearProbe/toy/seed1"
ENSEMBLE = f"python -m mergetune.ensemble {PROBE} \\\n    --test toy_objects_sketch"


def grid(line: str, short: str, why: str = NIGHT) -> dict[str, tuple[str, str]]:
    """A line of the page "reproduce", with its eleven datasets as a variable of the shell."""
    return {f"{line} $SETS 1 2 3": (f"{line} {short}", why)}


def dry(line: str, short: str = "", why: str = LINES) -> dict[str, tuple[str, str]]:
    """A line of which the plan is printed."""
    return {line: (f"DRY_RUN=1 {short or line}", why)}


# {documented command: (what is typed, why)}
INSTEAD = {
    # README.md
    "bash train.sh": ("bash train.sh toy_shapes 1", GRID),
    "bash tests/run.sh": ("bash tests/run.sh tests/end_to_end/test_layers.py", "it takes minutes, and runs this"),
    "bash tests/run.sh --quick": ("bash tests/run.sh --quick tests/end_to_end/test_layers.py", "the same"),
    **dry("bash train.sh --data /path/to/data caltech101 oxford_pets 1 2 3", "bash train.sh --data data caltech101 1"),
    # benchmark.md
    **dry("bash train.sh --trainer KgCoOp"),
    **dry("bash train.sh --protocol robust"),
    **dry("bash train.sh --protocol cross"),
    "python scripts/sweep.py configs/sweeps/tau.yaml": (
        "python scripts/sweep.py configs/sweeps/tau.yaml toy_shapes 1",
        GRID,
    ),
    # reproduce.md
    **grid("bash train.sh --data data --trainer CoOp", "caltech101 1"),
    **dry("bash train.sh --data data --trainer KgCoOp $SETS 1 2 3", "bash train.sh --data data --trainer KgCoOp dtd 1"),
    **grid("bash train.sh --data data --trainer MMA", "caltech101 1"),
    **grid("bash train.sh --data data --trainer PromptKD", "caltech101 1"),
    **grid("bash train.sh --data data --trainer CoOp --protocol fewshot", "caltech101 1"),
    **dry(
        "bash train.sh --data data --trainer CoOp --protocol cross imagenet 1 2 3",
        "bash train.sh --data data --trainer CoOp --protocol cross imagenet 1",
        "it is tested on ten other public sets",
    ),
    "bash train.sh --data data --trainer CoOp --protocol dg imagenet 1 2 3": (
        "bash train.sh --data data --trainer CoOp --protocol dg imagenet 1",
        NIGHT,
    ),
    "bash train.sh --data data --trainer LinearProbe --protocol robust imagenet 1 2 3": (
        "bash train.sh --data data --trainer LinearProbe --protocol robust imagenet 1",
        NIGHT,
    ),
    **dry(
        "bash train.sh --data data --trainer FineTune --protocol robust imagenet 1 2 3",
        "bash train.sh --data data --trainer FineTune --protocol robust imagenet 1",
        "the linear probe's line runs",
    ),
    **dry(
        "python scripts/sweep.py configs/sweeps/lambda_beta.yaml --data data $SETS 1 2 3",
        "python scripts/sweep.py configs/sweeps/lambda_beta.yaml --data data caltech101 1",
        "benchmark.md's runs",
    ),
    # datasets.md, dataset.md, own_data.md
    "python -m datasets check --protocol coop --root data": (
        "python -m datasets check --protocol coop --root data || [ $? = 1 ]",
        "small copies are not as published: exit code 1",
    ),
    "python -m datasets check --protocol mtil --root data": (
        "python -m datasets check --protocol mtil --root data || [ $? = 1 ]",
        "small copies are not as published: exit code 1",
    ),
    **dry(
        "bash train.sh --data data my_leaves 1 2 3",
        "bash train.sh --data data my_leaves 1",
        "own_data.md's line runs",
    ),
    "bash train.sh --data data tools 1 2 3": ("bash train.sh --data data tools 1", "three seeds"),
    # methods.md
    **dry(
        "python scripts/sweep.py configs/sweeps/lambda_beta.yaml",
        "python scripts/sweep.py configs/sweeps/lambda_beta.yaml toy_shapes 1",
        "benchmark.md's sweep runs",
    ),
    **dry("bash train.sh --data data --others caltech101 oxford_pets dtd 1", why=NIGHT),
    f"{ENSEMBLE} toy_objects_noise": (f"{ENSEMBLE} --alphas 0,0.5", "eleven passes over four datasets"),
    "python -m mergetune.path_card $RUN --space both --plane --figure": (
        "python -m mergetune.path_card $RUN --space both --plane --figure --images 4",
        "the model runs at 500 points: 4 test images each",
    ),
    "python -m mergetune.path_card $RUN --others": (
        "python -m mergetune.path_card $RUN --others --images 4",
        "4 test images of each of ten data sets",
    ),
    **dry(
        "bash scripts/zsclip/base2new_test.sh caltech101 1 -- MODEL.BACKBONE.NAME open_clip:ViT-B-16/FILE",
        why="a file of the reader's own",
    ),
    **dry("bash scripts/coop/base2new_train_siglip2.sh caltech101", why="the weights come from a hub"),
    "bash scripts/coop_LMC/base2new_train_coop_siglip2.sh caltech101 10.0 cosine True 1.0 siglip2_b16_ep100_ctxv1": (
        "DRY_RUN=1 bash scripts/coop_LMC/base2new_train_coop_siglip2.sh caltech101 10.0 cosine True 1.0 "
        "siglip2_b16_ep100_ctxv1",
        "the weights come from a hub",
    ),
    # continual.md
    "bash scripts/condu/toy_stream.sh": (
        "bash scripts/condu/toy_stream.sh --orders 2 --tasks toy_shapes,toy_colours",
        "20 minutes",
    ),
    "bash scripts/condu/toy_rates.sh": (
        "bash scripts/condu/toy_rates.sh --tasks toy_shapes,toy_colours --lora --rates 1e-4 -- "
        "TRAINER.CONDU.ITERATIONS 5",
        "an hour",
    ),
    "bash scripts/condu/toy_rates.sh --choose": (
        "bash scripts/condu/toy_rates.sh --choose --tasks toy_letters,toy_shapes --seeds 11 --rates 1e-4 -- "
        "OPTIM.WARMUP_STEPS 5",
        "half an hour",
    ),
    **{
        f"bash scripts/condu/{name}.sh I": (f"bash scripts/condu/{name}.sh aircraft,oxford_pet", "eleven public sets")
        for name in ("MTIL_FT", "eval_MTIL_FT", "eval_agnostic_MTIL_FT", "MTIL_LoRA", "fewshot_MTIL_FT")
    },
    "CFG=fewshot_mtil_ft bash scripts/condu/eval_MTIL_FT.sh I": (
        "CFG=fewshot_mtil_ft bash scripts/condu/eval_MTIL_FT.sh aircraft,oxford_pet",
        "eleven public sets",
    ),
    "python -m condu.import_released session_0 session_1 --to output/imported --order Aircraft,Caltech101 "
    "--classes classes.json": (
        "python -m condu.import_released session_0 session_1 --to output/imported --order Aircraft,Caltech101 "
        "--classes classes.json --backbone tiny",
        "the sessions here are of the tiny CLIP",
    ),
    # scale.md, costs.md
    "bash train.sh --all": ("bash train.sh --all toy_shapes 1 --dry-run", "every pair: an hour"),
    "python tests/faults/run.py": ('python tests/faults/run.py --only "NaN"', "11 minutes"),
    "python tests/fuzz/run.py": (
        "python tests/fuzz/run.py --inputs 100 --only yaml split",
        "100,000 files of every kind",
    ),
    "bash tests/gpu.sh": ("CUDA_VISIBLE_DEVICES= bash tests/gpu.sh || [ $? = 1 ]", "refused without a card"),
    "python tests/benchmarks/bank.py --views 20": ("python tests/benchmarks/bank.py --views 2 --repeats 1", "a minute"),
    "python tests/benchmarks/step.py --tasks CoOp_LMC --model small": (
        "python tests/benchmarks/step.py --tasks CoOp_LMC --model small --classes 5 --steps 1",
        "half a minute",
    ),
    "python tests/benchmarks/classes.py --markdown": (
        "python tests/benchmarks/classes.py --help",
        "12 minutes and 13 GB",
    ),
    "python tests/benchmarks/fusion.py --plain 11 --repeats 1": (
        "python tests/benchmarks/fusion.py --help",
        "minutes and 12 GB",
    ),
    "python tests/benchmarks/step.py": ("python tests/benchmarks/step.py --help", "20 minutes and 13 GB"),
    "python scripts/flow.py configs/tables/base2new.yaml --data data --gpus 4": (
        "python scripts/flow.py configs/tables/base2new.yaml --data data --gpus 4 --dry-run",
        "four GPUs",
    ),
    "python scripts/flow.py configs/tables/cross.yaml --data data --slurm --partition gpu --gpus 1 --workers 50": (
        "python scripts/flow.py configs/tables/cross.yaml --data data --slurm --partition gpu --gpus 1 --workers 50 "
        "--dry-run",
        "a Slurm",
    ),
    "bash scripts/try_slurm.sh": ("bash scripts/try_slurm.sh --help", "installs a Slurm, as root"),
    "python tests/fuzz/guided.py": ("python tests/fuzz/guided.py --help", "an hour"),
    "bash scripts/release_check.sh": ("bash scripts/release_check.sh --help", "four Pythons, 24 GB, a package index"),
    "python -m tests.benchmarks": ("python -m tests.benchmarks --help", "half an hour"),
}


def typed_of(page: str) -> list[str]:
    """The commands of a page in its order, each as it stands or what runs in its place; examples as scripts."""
    lines, number = [], 0
    kept = files_to_write(PAGES[page]).values()
    for language, body in BLOCK.findall(PAGES[page]):
        if language == "bash":
            lines += [INSTEAD.get(plain(command), (command,))[0] for command in commands_of(body)]
        elif language == "python" and "import " in body and body not in kept:
            lines.append(f"cat > example_{number}.py << 'EXAMPLE'\n{body}EXAMPLE\npython example_{number}.py")
            number += 1
    # benchmarks and harnesses go by their own keys
    return [f"EXTRA_OPTS= {line}" if line.startswith("python tests/") else line for line in lines if line]


def plain(command: str) -> str:
    """A command without its comment, which says what it is for."""
    return re.split(r"\s+#", command)[0].strip()
