"""Figures of streams of tasks: the accuracy matrix, the spread over orders, experts beside their reconstructions."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dassl.report.figures import drawing
from dassl.report.figures.tsne import KINDS, load_scatters
from dassl.report.frame import Grid
from dassl.report.methods import Methods, Row
from dassl.report.protocols.mtil import METRICS, PROTOCOLS, Column, Stream, orders, shown_streams, streams
from dassl.report.records import NoRuns
from dassl.report.table import csv_numbers


def heatmaps(_: object, records: list[dict], methods: Methods) -> Iterator[drawing.Drawn]:
    """A heatmap for each stream's methods."""
    shown = ((protocol, one) for protocol, grids in _protocols(records, methods) for one in shown_streams(grids))
    return (matrix_figure(one, row, protocol) for protocol, one in shown for row in one.changing)


def order_figures(_: object, records: list[dict], methods: Methods) -> Iterator[drawing.Drawn]:
    """The spread over orders, a figure for each set of tasks."""
    return (orders_figure(protocol, *s) for protocol, grids in _protocols(records, methods) for s in orders(grids))


def _protocols(records, methods):
    """(protocol, its Streams) of those for which there are runs."""
    for protocol in PROTOCOLS:
        with contextlib.suppress(NoRuns):  # as the tables say
            yield protocol, streams(records, protocol, methods)


def scatter_figures(folders: list, _: object, __: object) -> Iterator[drawing.Drawn]:
    """A t-SNE for each tsne.json below `folders`, named by where it lies."""
    for file, content in load_scatters(*folders):
        near = [file.parent.relative_to(f) for f in map(Path, folders) if file.is_relative_to(f)]
        yield scatter_figure(content, "_".join(["tsne", *min(near, key=lambda path: len(path.parts)).parts]))


def matrix_figure(stream: Stream, row: Row, protocol: str) -> drawing.Drawn:
    """A method's accuracy after each task on each task, mean over seeds, as a heatmap.

    Below the line: learned by then.
    """
    tasks, name = stream.tasks, stream.names[row]
    cells = {(after, task): stream.cell(row, Column("accuracy", task, after)) for after in tasks for task in tasks}
    values = np.array([[s.mean if (s := cells[a, t]) else np.nan for t in tasks] for a in tasks])
    sums = [f"{title} {s.mean:.1f}" for m, title in METRICS.items() if (s := stream.cell(row, Column(m)))]
    seeds = max((s.n for s in cells.values() if s), default=0)
    caption = f"{stream.title}; {', '.join(sums)}; {seeds} seed{'s' if seeds > 1 else ''}; below the line: learned"
    size = len(tasks)
    width = max(6.0, 2.6 + 0.66 * size)
    figure = drawing.new_figure(width, 1.9 + 0.42 * size, f"{name}: accuracy (%) after each task", caption)
    axes = figure.subplots()
    heatmap(figure, axes, values)
    axes.set_xticks(range(size), tasks, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), tasks)
    axes.set(xlabel="tested on", ylabel="after learning")
    lines = [[after, task, *csv_numbers(cells[after, task])] for after in tasks for task in tasks]
    called = "_".join(filter(None, ["matrix", protocol, name, stream.labels, stream.order]))
    return figure, called, ["after", "task", "mean", "std", "n"], lines


def heatmap(figure: "drawing.Figure", axes: "drawing.Axes", values: np.ndarray) -> None:
    """Coloured cells with their numbers, and a stair between learned and unseen. values: (T, T), nan where missing."""
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=axes, label="accuracy (%)", pad=0.02)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 48 else "black"  # on cividis a contrast of 4.5 or more everywhere
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    size = len(values)
    xs = [x - 0.5 for k in range(size) for x in (k, k + 1)]
    ys = [k - 0.5 for k in range(size) for _ in (0, 1)]
    axes.plot(xs, ys, color="white", lw=4, solid_joinstyle="miter")
    axes.plot(xs, ys, color="#D55E00", lw=2, solid_joinstyle="miter")
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def orders_figure(protocol: str, title: str, grid: Grid) -> drawing.Drawn:
    """Each order's Transfer, Average and Last, their mean and deviation. title, grid: of `orders`."""
    names, lines, count = grid.names, [], len(grid.rows)
    figure = drawing.new_figure(9.2, 1.7 + 0.55 * count, title, "points: an order each; bar: mean ± deviation")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    places = range(count, 0, -1)  # the first method on top
    for axes, (metric, words) in zip(panels, METRICS.items(), strict=True):
        for y, row in zip(places, grid.rows, strict=True):
            values, look = list(grid.by_seed(row, metric).values()), drawing.style(grid.rows.index(row))
            lines += [[names[row], metric, k + 1, f"{value:.4f}"] for k, value in enumerate(values)]
            if summary := grid.cell(row, metric):
                offsets = 0.22 * np.cos(2.4 * np.arange(len(values)))  # 2.4: no two neighbours alike
                axes.plot(values, y + offsets, look["marker"], color=look["color"], ms=4.5, alpha=0.55, mew=0)
                axes.errorbar(summary.mean, y, xerr=summary.std or 0, fmt="|", color="black", ms=16, mew=2, capsize=4)
        drawing.plain_axes(axes, "", words, "accuracy (%)")
        axes.grid(axis="x", color="0.92", lw=0.8)
        axes.margins(x=0.12)
    panels[0].set_yticks(list(places), [drawing.wrapped(names[row], 26, 3) for row in grid.rows])
    panels[0].set_ylim(0.4, count + 0.6)
    columns = ["method", "metric", "order", "value"]
    return figure, f"orders_{protocol}_{title}", columns, lines


def scatter_figure(content: dict, title: str) -> drawing.Drawn:
    """Image features by expert and by its reconstruction in one plane. content: of `load_scatters`."""
    tasks, points = content["tasks"], content["points"]
    caption = "t-SNE of image features; filled: " + KINDS["expert"] + "; open: " + KINDS["reconstructed"]
    figure = drawing.new_figure(7.6, 6.4, content.get("title") or "Experts and their reconstructions", caption)
    axes = figure.subplots()
    for k, task in enumerate(tasks):
        colour = drawing.COLOURS[k % len(drawing.COLOURS)]
        marker = drawing.MARKERS[(k + k // len(drawing.COLOURS)) % len(drawing.MARKERS)]  # 49 tasks without a repeat
        looks = {
            "expert": {"color": colour, "lw": 0, "s": 18, "alpha": 0.75, "label": task},
            "reconstructed": {"facecolors": "none", "edgecolors": colour, "lw": 0.8, "s": 40},
        }
        for kind in KINDS:
            places = [(p["x"], p["y"]) for p in points if (p["task"], p["kind"]) == (task, kind)]
            axes.scatter(*np.reshape(places, (-1, 2)).T, marker=marker, **looks[kind])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=1.6)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.05)
    lines = [[p["task"], p["kind"], p["label"], f"{p['x']:.6g}", f"{p['y']:.6g}"] for p in points]
    return figure, title, ["task", "kind", "label", "x", "y"], lines
