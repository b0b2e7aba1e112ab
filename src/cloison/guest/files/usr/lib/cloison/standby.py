"""Starts the program that stands by for the agent (cloison/guest/standby.py): the same as agent.py, by another name."""
from cloison.guest import standby

standby.begin()                          # before what takes time to load

import asyncio  # noqa: E402

from cloison.guest.agent import main  # noqa: E402

asyncio.run(main())
