"""``python -m suffuse_rl_planning``: the command line."""

from .cli import main

raise SystemExit(main())
