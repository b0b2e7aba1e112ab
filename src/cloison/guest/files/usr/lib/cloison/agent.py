"""Starts the agent. A script, because `python3 -m` would import runpy first, which costs time under emulation.

Python puts this file's folder first in `sys.path`, so `cloison` is found beside it.
"""
import asyncio

from cloison.guest.agent import main

asyncio.run(main())
