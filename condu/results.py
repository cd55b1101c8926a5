"""results.json of a stream: its accuracy matrix with counts, what was run, and the three numbers it comes to."""

import os

from dassl.engine.results import FILE, FORMAT, device_name, versions
from dassl.utils import write_json
from dassl.utils.distributed import is_main
from dassl.utils.memory import report_peak


def write_matrix(folder, matrix, facts, device=None):
    """Write `folder`/results.json -> its content. Written last and whole, so its presence means finished.

    Every process of the run calls it, the main one writes.

    matrix: AccuracyMatrix. facts: trainer (a method or a baseline), protocol ("mtil" or "mtil_agnostic"), seed,
    backbone ({"name", "digest"}), wall_s (seconds), command; and as far as they apply preset, labels (None,
    "target" or "union"), order (name of the task order), vote, scale, space, shots, known (rows of percentages of the
    tasks' own experts), and whatever else. Without a transfer (one task) the metric is left out.
    """
    metrics = {name: float(value) for name, value in matrix.summary().items() if value is not None}
    order = facts.get("order") or ",".join(matrix.tasks)
    results = {
        "format": FORMAT,
        "kind": "eval",
        "preset": "",
        "dataset": f"stream {order}",
        "subset": "all",
        **dict.fromkeys(("labels", "order", "vote", "scale", "space", "shots", "known")),
        "order": order,
        **facts,
        "tasks": list(matrix.tasks),
        "matrix": matrix.to_json(),
        "metrics": metrics,
        "versions": versions(),
        "device": None if device is None else device_name(device),
        "peak_mb": None if device is None else report_peak(device),
        "wall_s": round(facts["wall_s"], 3),
    }
    if is_main():
        write_json(results, os.path.join(folder, FILE))
    return results
