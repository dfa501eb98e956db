"""`python -m matryoshka`: the command line."""

import sys

from matryoshka.cli import main

sys.exit(main())
