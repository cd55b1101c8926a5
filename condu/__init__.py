"""ConDU: continual learning by fusing what each task changed in a pretrained CLIP (arXiv 2503.10705)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "Dassl.ProGrad.pytorch"))  # where the engine is not installed

import dassl  # noqa: E402, F401  it says which Python and which packages are needed
