"""`python -m sim`: run seeds, and tell the story of one that fails."""

from __future__ import annotations

import sys

from sim.command import main

sys.exit(main(sys.argv[1:]))
