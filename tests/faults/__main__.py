"""python -m tests.faults: see run.py."""

import sys

from tests.faults.run import main

sys.exit(main())
