"""python -m pgr_supervise"""

import sys

from pgr_supervise import main

if __name__ == "__main__":
    sys.exit(main())
