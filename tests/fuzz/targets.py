"""All targets by name."""

from tests.fuzz.array_targets import ARRAYS
from tests.fuzz.markup import MARKUP
from tests.fuzz.text_targets import TEXTS
from tests.fuzz.weight_targets import WEIGHTS

TARGETS = {target.name: target for target in (*TEXTS, MARKUP, *WEIGHTS, *ARRAYS)}
