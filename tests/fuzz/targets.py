"""All targets by name."""

from tests.fuzz.text_targets import TEXTS
from tests.fuzz.weight_targets import APART, WEIGHTS

TARGETS = {target.name: target for target in (*TEXTS, *WEIGHTS)}
ALL = TARGETS | {target.name: target for target in APART}
