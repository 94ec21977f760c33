"""python -m bench.report"""

import sys

from . import main

sys.exit(main())
