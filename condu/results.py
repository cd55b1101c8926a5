"""results.json of a stream: its accuracy matrix with counts, what was run, and the three numbers it comes to."""

import os

from dassl.engine.results import FILE, FORMAT, device_name, versions
from dassl.utils import UserError, write_json
from dassl.utils.distributed import is_main
from dassl.utils.memory import report_peak

PROTOCOLS = ("mtil", "mtil_agnostic")
REQUIRED = ("trainer", "protocol", "seed", "backbone", "wall_s", "command")


def write_matrix(folder, matrix, facts, device=None):
    """Write `folder`/results.json -> its content. Written last and whole, so its presence means finished.

    Every process of the run calls it, the main one writes.

    matrix: AccuracyMatrix. facts: trainer (a method or a baseline), protocol ("mtil" or "mtil_agnostic"), seed,
    backbone ({"name", "digest"}), wall_s (seconds), command; and as far as they apply preset, labels (None,
    "target" or "union"), order (name of the task order), vote, scale, space, shots, known (rows of percentages of the
    tasks' own experts), and whatever else. Without a transfer (one task) the metric is left out.

    Raises:
        UserError: a fact is missing, or the protocol and the label space do not go together.
    """
    missing = [name for name in REQUIRED if name not in facts]
    if missing:
        raise UserError(f"results of a stream: no {', '.join(missing)}; expected {', '.join(REQUIRED)}")
    if facts["protocol"] not in PROTOCOLS:
        raise UserError(f'unknown protocol "{facts["protocol"]}", expected one of {", ".join(PROTOCOLS)}')
    labels = facts.get("labels")
    if labels not in ((None,) if facts["protocol"] == "mtil" else ("target", "union")):
        raise UserError(f'protocol {facts["protocol"]}: label space "{labels}" does not go with it')
    metrics = {name: float(value) for name, value in matrix.summary().items() if value is not None}
    order = facts.get("order") or ",".join(matrix.tasks)
    results = {
        "format": FORMAT,
        "kind": "eval",
        "preset": "",
        "dataset": f"stream {order}",
        "subset": "all",
        "labels": None,
        "order": order,
        "vote": None,
        "scale": None,
        "space": None,
        "shots": None,
        "known": None,
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
