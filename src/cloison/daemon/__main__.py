"""`python -m cloison.daemon`."""
from __future__ import annotations

import sys

from cloison.daemon.main import main

sys.exit(main())
