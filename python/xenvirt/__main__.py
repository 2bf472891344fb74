"""``python -m xenvirt`` is the command ``xenvirt``."""

import sys

from xenvirt.cli import main

if __name__ == "__main__":
    sys.exit(main())
