import sys


def _excepthook(kind, error, trace, shown=sys.excepthook):
    """Ctrl-C while a program still imports its modules, torch above all, needs no traceback."""
    depth, importing = 0, {"<module>", "_find_and_load", "import_module"}
    while trace is not None:
        depth, trace = depth + (trace.tb_frame.f_code.co_name in importing), trace.tb_next
    if depth < 2 or kind is not KeyboardInterrupt:
        shown(kind, error, error.__traceback__)


sys.excepthook = _excepthook

import importlib.util  # noqa: E402

__version__ = "1.0.0"

# in one line, whatever command or program asks: before anything that an older Python cannot read
_NEEDED = ("torch", "torchvision", "numpy", "PIL", "yaml", "yacs", "tqdm", "safetensors", "sklearn")
_lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"error: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")
if _lacking:
    sys.exit(f"error: no {', '.join(_lacking)} in {sys.executable}: pip install -r requirements.txt (or bash train.sh)")

from dassl.utils.moved import MovedModules  # noqa: E402

sys.meta_path.append(MovedModules())
