"""What all figures share: canvas, files, names, colours that colour-blind readers tell apart.

Each figure is a PNG at 150 dpi with its numbers beside it as CSV. Colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/); line styles and markers differ too, so a figure survives greyscale.
matplotlib is imported when a figure is drawn, and never opens a window.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dassl.report.frame import Summary
from dassl.report.table import to_csv
from dassl.utils import atomic_write, digest, import_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SUBSET_STYLES: dict[str, dict] = {
    "base": {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
    "new": {"color": COLOURS[1], "linestyle": "--", "marker": "s"},
    "all": {"color": COLOURS[2], "linestyle": "-.", "marker": "^"},
    "others": {"color": COLOURS[6], "linestyle": (0, (5, 1, 1, 1)), "marker": "D"},
}
Drawn = tuple["Figure", str, list, list]  # with its title, and the columns and lines of its numbers
AXIS_LABELS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (%)"}


def style(k: int) -> dict[str, Any]:
    """Colour, line and marker of the k-th of many lines -> dict."""
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": LINES[k % len(LINES)],
        "marker": MARKERS[k % len(MARKERS)],
    }


def new_figure(width: float, height: float, title: str = "", caption: str = "") -> "Figure":
    """An empty figure, sizes in inches, with a title above and a caption below."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.1)  # inches: a label at the end of an axis is wider than it
    figure.suptitle(wrapped(title, 90, 2), fontsize=12, x=0.01, ha="left")
    caption = "\n".join(wrapped(line, int(14 * width), 4) for line in caption.splitlines())  # 14 letters an inch
    figure.supxlabel(caption, fontsize=8, color="0.35", x=0.01, ha="left")
    return figure


def plain_axes(axes: "Axes", ylabel: str, title: str = "", xlabel: str = "") -> None:
    """Labels, horizontal grid lines only, open at the top and on the right."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="y", color="0.92", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: "Figure") -> None:
    """The names of all lines, each once, beside the panels: none covers a line."""
    handles = [axes.get_legend_handles_labels() for axes in figure.axes]
    by_label = {label: handle for pair in handles for handle, label in zip(*pair, strict=True)}
    figure.legend(by_label.values(), by_label, loc="outside right upper", fontsize=8, frameon=False, handlelength=4)


def band(axes: "Axes", x: np.ndarray, summary: Summary, colour: str, alpha: float) -> np.ndarray:
    """One deviation about a curve, where there is one -> its mean (P,). x: (P,); summary: of curves (P,)."""
    mean, std, *_ = summary
    if std is not None:
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=alpha, lw=0)
    return mean


def mean_over(datasets: Sequence[str]) -> str:
    """What a figure's averages are over: "mean over 3 data sets", or the only one."""
    return f"mean over {len(datasets)} data sets" if len(datasets) > 1 else datasets[0]


def save(folder: str | Path, figure: "Figure", title: str, columns: list, lines: list[list]) -> list[Path]:
    """Write a PNG, called by its title, into `folder` and its numbers beside it as CSV -> [both Paths].

    Names with dollar signs are no formulas. A digest ends a name beyond 100 characters (disks take 255).
    """
    from matplotlib.text import Text

    name = re.sub(r"[^A-Za-z0-9.]+", "_", title).strip("_")
    name = name if len(name) <= 100 else f"{name[:90]}_{digest(title)[:8]}"
    image, table = Path(folder, f"{name}.png"), Path(folder, f"{name}.csv")
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with atomic_write(image) as stream:
        figure.savefig(stream, format="png", dpi=DPI)
    with atomic_write(table, "w", encoding="utf-8", newline="") as stream:
        stream.write(to_csv(columns, lines))
    return [image, table]


def curve_lines(head: Iterable[str], xs: np.ndarray, summary: Summary) -> list[list]:
    """A curve's lines of a CSV: head, x, mean, std, n; empty what is not finite. xs, mean and std: (P,)."""
    mean, std, n, _ = summary
    values = zip(xs, mean, [None] * len(xs) if std is None else std, strict=True)
    return [[*head, f"{x:g}", *("" if y is None or y != y else f"{y:.6f}" for y in pair), n] for x, *pair in values]


def wrapped(text: str, width: int, lines: int) -> str:
    """Text in at most so many lines, so that a long name cannot push the panels out of the figure."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" \N{HORIZONTAL ELLIPSIS}")
