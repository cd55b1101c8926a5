"""The figures of a toy stream: accuracy matrices, the spread over orders, and features of experts beside those of
their reconstructions. Letters: D joint width, N pictures of a task.
"""

from pathlib import Path

import torch
from torch import Tensor

from condu.snapshot import Member, TestSet
from scripts.condu.bench import StreamEvaluation
from scripts.condu.experiments import member

SHOWN = 40  # pictures of a task; more make a t-SNE slow and no clearer


@torch.no_grad()
def features_of(bench: StreamEvaluation, model: Member, test: TestSet) -> tuple[Tensor, Tensor]:
    """Unit features (N, D) and labels (N,) of some test pictures, spread over the set."""
    pixels, labels = next(iter(test.chunks(bench.evaluator.chunk, bench.clip.device)))
    rows = torch.linspace(0, len(labels) - 1, min(SHOWN, len(labels))).long()
    clip = bench.evaluator.slots.clip(model.key, model.fill)
    with bench.autocast():
        features = clip.encode_image(pixels[rows])
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu(), labels[rows].cpu()


def write_features(bench: StreamEvaluation) -> None:
    """tsne.json: every task's pictures through its own expert, and through the expert of the last session."""
    from dassl.report.figures.tsne import SCATTER_FILE, write_scatter

    last = bench.snapshots()[-1]
    features, about = [], []
    for test in bench.tests:
        own = member(bench, bench.experts[test.name][0])
        for kind, model in (("expert", own), ("reconstructed", last.members[last.place(test.name)])):
            found, labels = features_of(bench, model, test)
            features.append(found)
            about += [(test.name, kind, test.classnames[label]) for label in labels.tolist()]
    title = f"Experts and their reconstructions after {len(bench.tests)} tasks"
    write_scatter(bench.run.out / SCATTER_FILE, torch.cat(features).numpy(), about, title)


def draw_figures(bench: StreamEvaluation) -> list[str]:
    """All figures of the run -> the picture files, anew each time: they are made of the results alone."""
    from dassl.report.figures.all import all_figures
    from dassl.report.figures.tsne import SCATTER_FILE
    from dassl.report.records import load_results
    from mergetune.report import METHODS

    out = bench.run.out
    if bench.run.overwrite or not (out / SCATTER_FILE).is_file():
        write_features(bench)
    drawn = all_figures([out], load_results(out), Path(out, "figures"), METHODS)
    return [str(path) for path in drawn if path.suffix == ".png"]
