"""``python -m mms_jax.cli``."""

import sys

from mms_jax.cli import main

sys.exit(main())
