"""ConDU: continual learning by fusing what each task changed in a pretrained CLIP (arXiv 2503.10705)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "Dassl.ProGrad.pytorch"))  # where the engine is not installed

from dassl.utils.late import late_imports  # noqa: E402

__getattr__, __dir__, __all__ = late_imports(__name__)
