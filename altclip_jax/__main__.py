"""`python -m altclip_jax` is the command `altclip`."""

import sys

from altclip_jax.cli import main

sys.exit(main())
