"""``python -m xenvirt.cli`` is ``xenvirt``."""

import sys

from . import main

sys.exit(main())
