"""python -m datasets check [NAME...] --root DIR | links NAME | make-split NAME | import-subset FILE.pkl NAME"""

import sys

if __name__ == "__main__":
    from dassl.utils import UserError
    from datasets.tools.command import PROBLEMS, main

    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(PROBLEMS)
