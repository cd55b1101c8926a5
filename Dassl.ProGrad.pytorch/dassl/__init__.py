import importlib.util
import sys

__version__ = "1.0.0"

# in one line, whatever command or program asks: before anything that an older Python cannot read
_NEEDED = ("torch", "torchvision", "numpy", "PIL", "yaml", "yacs", "tqdm", "safetensors", "sklearn")
_lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"error: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")
if _lacking:
    sys.exit(f"error: no {', '.join(_lacking)} in {sys.executable}: pip install -r requirements.txt (or bash train.sh)")
