"""Starts the agent. A script, because `python3 -m` would import runpy first, which costs time under emulation.

Python puts this file's folder first in `sys.path`, so `cloison` is found beside it.
"""
from cloison.guest import standby

standby.begin()                          # before what takes time to load

import asyncio  # noqa: E402

from cloison.guest.agent import main  # noqa: E402

asyncio.run(main())
