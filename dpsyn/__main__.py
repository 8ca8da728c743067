"""`python -m dpsyn`"""

from dpsyn.cli import main

raise SystemExit(main())
