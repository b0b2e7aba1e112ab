"""Forks wardens in milliseconds: a process that has imported all they need, and keeps warm RAM ready for them to hand to QEMU.

`python -m cloison.warden.zygote FD`: requests come as single packets on that socket, JSON with descriptors:

    launch  {launch}          descriptors: control, [lease]     -> fork a warden
    make    {launch}          descriptors: control              -> fork a maker of its warm image
    forget  {folder}                                            -> let that image's RAM go

It ends when qubesd does (end of file); its wardens don't. It is single-threaded, has no event loop, and never waits for a child.
"""
from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from cloison.errors import CloisonError
from cloison.hypervisor import readonly, sandbox
from cloison.hypervisor.base import Machine, MachineSpec
from cloison.hypervisor.qemu import warm
from cloison.hypervisor.qemu.driver import QEMU, QemuMachine
from cloison.runtime import keyring
from cloison.runtime.log_file import LogFile
from cloison.runtime.logs import log_to_own_file
from cloison.runtime.memory import ends_first, limit_data
from cloison.runtime.paths import Paths
from cloison.runtime.programs import find
from cloison.runtime.say import Pace, say_to
from cloison.warden import bounds, disks
from cloison.warden.main import Warden
from cloison.warden.maker import make
from cloison.wire.warden import Launch, encode, launch_from_json

MAX_PACKET = 1 << 18
MAX_FDS = 4
_PR_SET_NAME = 15
OOM_SCORE = 300             # a warden goes before qubesd, and its QEMU before it


class Zygote:
    """`requests`: a SOCK_SEQPACKET socket from qubesd. `make_machine`: what the wardens' and makers' machines are."""

    def __init__(self, requests: socket.socket, paths: Paths, make_machine: Callable[[MachineSpec], Machine]) -> None:
        self._requests, self._paths, self._make_machine = requests, paths, make_machine
        self._loaded: dict[str, warm.Memory] = {}

    def serve(self) -> None:
        while True:
            packet, fds, flags, _ = socket.recv_fds(self._requests, MAX_PACKET, MAX_FDS)
            if not packet:
                return
            try:
                if not flags & socket.MSG_TRUNC:
                    self._handle(json.loads(packet), fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _handle(self, request: dict[str, Any], fds: list[int]) -> None:
        if request["do"] == "forget":
            for fd in self._loaded.pop(request["folder"], ()):
                os.close(fd)
            return
        control = socket.socket(fileno=os.dup(fds[0]))
        try:
            launch = launch_from_json(request["launch"])
            if request["do"] == "make":
                self._fork(lambda: make(self._paths, launch, control, self._make_machine), "maker")
            else:
                disks.prepare(launch)
                memory = self._memory(launch.warm) if launch.warm is not None else None
                self._fork(lambda: self._warden(launch, control, fds, memory), launch.name)
        except (CloisonError, OSError) as error:
            with contextlib.suppress(OSError):
                control.sendall(encode({"event": "failed", "reason": str(error)}))
        finally:
            control.close()

    def _memory(self, folder: str) -> warm.Memory:
        """The image's sealed RAM and state, compared with what was saved and loaded once. Raises DamagedImage."""
        if folder not in self._loaded:
            self._loaded[folder] = warm.load(folder)
        return self._loaded[folder]

    async def _warden(self, launch: Launch, control: socket.socket, fds: list[int], memory: warm.Memory | None) -> None:
        lease = socket.socket(fileno=os.dup(fds[1])) if len(fds) > 1 else None
        own = warm.Memory(os.dup(memory.ram), readonly.again(memory.state)) if memory is not None else None
        for fd in (*(fd for loaded in self._loaded.values() for fd in loaded), *fds):
            os.close(fd)
        limit_data(bounds.DATA)
        ends_first(OOM_SCORE)
        say_to(LogFile(self._paths.qube_log(launch.name), bounds.LOG, stdio=True), Pace(bounds.LOG_BURST, bounds.LOG_RATE),
               stamped=True)
        await Warden(self._paths, launch, control, lease, own, make_machine=self._make_machine).run()

    def _fork(self, work: Any, name: str) -> None:
        if os.fork() != 0:
            return
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._requests.close()
            ctypes.CDLL(None).prctl(_PR_SET_NAME, f"warden {name}"[:15].encode(), 0, 0, 0)
            coroutine: Coroutine[Any, Any, None] = work()
            asyncio.run(coroutine)
            status = 0
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr.flush()
            os._exit(status)


def main(make_machine: Callable[[MachineSpec], Machine] = QemuMachine) -> None:
    keyring.leave()                                 # the wardens and their boxes too
    requests = socket.socket(fileno=int(sys.argv[1]))
    paths = Paths.from_environment()
    log_to_own_file()                                 # the wardens' too
    os.umask(0o077)
    # Guest memory must not end up in a core file (security lessons: memory residue).
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # children are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C in a terminal is qubesd's business
    sandbox.libraries(os.path.realpath(find(QEMU)))           # once here, not in every warden
    gc.collect()
    gc.freeze()                                     # so that a child's collections don't copy our pages
    Zygote(requests, paths, make_machine).serve()


if __name__ == "__main__":
    main()
