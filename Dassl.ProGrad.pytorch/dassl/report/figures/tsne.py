"""Features of experts and of their reconstructions in two dimensions: making, writing and reading tsne.json.

    {"format": 1, "title": "...", "tasks": [names],
     "points": [{"task": name, "kind": "expert" | "reconstructed", "label": class, "x": number, "y": number}]}

t-SNE (van der Maaten and Hinton, JMLR 2008) keeps neighbours, not distances: what it can show is whether the features
of an image by an expert and by its reconstruction lie side by side. Letters: D width, N feature vectors.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dassl.report.records import is_number, read_all, read_object
from dassl.utils import write_json

FORMAT = 1
SCATTER_FILE = "tsne.json"
KINDS = {"expert": "the expert's own", "reconstructed": "its reconstruction's"}


def tsne(features: ArrayLike, seed: int = 0) -> np.ndarray:
    """Features (N, D) of any kind that numpy reads -> (N, 2). The same for the same features and seed.

    ValueError for fewer than four vectors, or any that is not finite.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 4 or not np.isfinite(features).all():
        raise ValueError(f"t-SNE: expected four finite feature vectors or more, found {features.shape}")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)


def write_scatter(file: str | Path, features: ArrayLike, about: Iterable[tuple], title: str = "") -> dict:
    """Project features (N, D) and write tsne.json -> its content.

    about: N tuples (task, kind, label); tasks are listed as they come.
    """
    points = [
        {"task": task, "kind": kind, "label": label, "x": float(x), "y": float(y)}
        for (task, kind, label), (x, y) in zip(about, tsne(features), strict=True)
    ]
    content = {"format": FORMAT, "title": title, "tasks": list(dict.fromkeys(p["task"] for p in points))}
    content["points"] = points
    write_json(content, file)
    return content


def load_scatters(*folders: str | Path) -> list[tuple[Path, dict]]:
    """Every tsne.json below `folders` -> list of (Path, content); a damaged one costs a warning and is left out."""
    return read_all(SCATTER_FILE, folders, lambda file: (file, _checked(read_object(file, FORMAT))))


def _checked(content):
    """The file's content. ValueError if it has no tasks, or a point that is none."""
    tasks, points = content.get("tasks"), content.get("points")
    if not isinstance(tasks, list) or not tasks or not isinstance(points, list) or not points:
        raise ValueError("expected lists of tasks and points")
    if not all(isinstance(text, str) for text in (*tasks, content.get("title") or "")):
        raise ValueError("expected texts for the title and the names of tasks")
    for point in points:
        fine = isinstance(point, dict) and point.get("task") in tasks and point.get("kind") in KINDS
        if not fine or "label" not in point or not all(is_number(point.get(axis)) for axis in "xy"):
            raise ValueError(f"points: expected a task, a kind of {', '.join(KINDS)}, a label, x and y; found {point}")
    return content
