"""A qubesd with fake machines on real pools, as a process of its own: `crash_daemon.py ROOT`. Tests kill it."""
from __future__ import annotations

import asyncio
import os
import sys

from cloison.daemon.fake import fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.host import RealHost
from cloison.daemon.locks import take_locks
from cloison.daemon.run import serve
from cloison.daemon.wiring import DRIVERS
from cloison.runtime.paths import Paths

root = sys.argv[1]
paths = Paths.from_environment({"CLOISON_ROOT": root})
paths.ensure()
locks = take_locks(paths)
wardens = FakeWardens(os.path.join(root, "wardens"))
host = RealHost(paths.kernels, lambda: ["6.6.1"])
asyncio.run(serve(fake_parts(root, wardens=wardens, host=host, drivers=DRIVERS), locks))
