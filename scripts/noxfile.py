"""The engine and the project under every supported Python, each in an empty environment: scripts/release_check.sh."""

import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "Dassl.ProGrad.pytorch"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
PACKAGES = ("dassl", "mergetune", "condu", "datasets")
RUN = (
    *("train.py", "--root", "data", "--seed", "1", "--trainer", "CoOp"),
    *("--dataset-config-file", "configs/datasets/toy_shapes.yaml"),
    *("--config-file", "configs/trainers/CoOp/vit_b16_ep100_ctxv1.yaml"),
    *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES"),
)
nox.options.error_on_missing_interpreters = True


@nox.session(python=VERSIONS)
def release(session: nox.Session) -> None:
    """The engine installed from its folder, then from PYTHONPATH; then, without --no-project, all of the project."""
    home = Path(session.create_tmp())
    engine = copied(ENGINE, home / "engine")
    session.install(str(engine))
    smoke(session, home / "installed", Path(session.virtualenv.location).resolve(), "dassl")
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "dassl")
    smoke(session, home / "on_the_path", engine, "dassl", PYTHONPATH=str(engine))
    if "--no-project" in session.posargs:
        return
    project = copied(ROOT, home / "project")
    session.chdir(project)
    session.install("-r", "requirements.txt")
    smoke(session, home / "everything", project, *PACKAGES, PYTHONPATH=str(project))
    session.chdir(project)
    session.run("python", *RUN, "base", "--output-dir", "out/train")
    for subset in ("base", "new"):
        session.run("python", *RUN, subset, "--output-dir", f"out/{subset}", "--eval-only", "--model-dir", "out/train")
    session.run("python", "-m", "mergetune.report", "out")


def smoke(session: nox.Session, folder: Path, home: Path, *packages: str, **environment: str) -> None:
    """release_smoke.py from an empty folder; the engine has to be the one below `home`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    session.chdir(folder)
    script = ROOT / "tests" / "fixtures" / "release_smoke.py"
    session.run("python", "-P" if session.python != "3.10" else "-B", str(script), "--home", str(home), *packages,
                env=environment)  # fmt: skip


def copied(source: Path, target: Path) -> Path:
    """A copy without what runs and builds leave, so that a build writes nothing here."""
    built = shutil.ignore_patterns("__pycache__", "build", ".git", ".venv", "*.egg-info")
    shutil.rmtree(target, ignore_errors=True)
    runs = {str(ROOT): {"data", "output"}}
    shutil.copytree(source, target, ignore=lambda home, names: built(home, names) | runs.get(home, set()))
    return target.resolve()
