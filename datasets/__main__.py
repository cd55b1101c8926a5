"""python -m datasets check [NAME...] --root DIR | links NAME | make-split NAME | import-subset FILE.pkl NAME"""

import sys

if __name__ == "__main__":
    from dassl.utils import errors_in_one_line
    from datasets.tools.command import PROBLEMS, main

    with errors_in_one_line(PROBLEMS):
        sys.exit(main())
