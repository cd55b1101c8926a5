"""CLIP adapters (stage 1) and MERGETUNE's continued fine-tuning of each (stage 2), arXiv 2601.10497."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "Dassl.ProGrad.pytorch"))  # where the engine is not installed

from dassl.utils.late import late_imports  # noqa: E402

__getattr__, __dir__, __all__ = late_imports(__name__)
