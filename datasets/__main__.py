"""python -m datasets check [NAME...] --root DIR | links NAME | make-split NAME | import-subset FILE.pkl NAME"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "Dassl.ProGrad.pytorch"))  # where it is not installed
    from dassl.utils import errors_in_one_line
    from datasets.tools.command import PROBLEMS, main

    with errors_in_one_line(PROBLEMS):
        sys.exit(main())
