"""The zygote as qubesd sees it: a process of its own that takes requests, and is started again when it is lost."""
from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from typing import Any

from cloison.errors import MachineError
from cloison.runtime.paths import Paths

log = logging.getLogger(__name__)
ZYGOTE = "cloison.warden.zygote"
MAX_LAUNCH = 200_000          # bytes of a launch: a packet as large as any kernel lets an ordinary user send


class Zygote:
    """`module`: what is run as the zygote."""

    def __init__(self, paths: Paths, module: str = ZYGOTE) -> None:
        self._paths, self._module = paths, module
        self._stream: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Ahead of the first request, so that it need not wait."""
        if self._stream is None:
            self._stream = self._spawn()

    def send(self, request: dict[str, Any], fds: list[int]) -> None:
        """One packet to the zygote, which is started if it isn't there. Raises MachineError."""
        packet = json.dumps(request).encode()
        if len(packet) > MAX_LAUNCH:
            raise MachineError(f"it has too many features: they take {len(packet)} bytes, and {MAX_LAUNCH} can be handed over")
        for _ in range(2):
            if self._stream is None:
                self._stream = self._spawn()
            try:
                socket.send_fds(self._stream, [packet], fds)
                return
            except OSError as error:
                log.warning("zygote lost (%s); starting another", error)
                self.close()
        raise MachineError("the zygote that forks wardens can't be reached")

    def _spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.path.join(self._paths.log, "wardens.log"), "ab") as log_file:
            # -P: a module in the current folder must not take the place of ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)
        ours.settimeout(10)
        return ours

    def close(self) -> None:
        """The zygote sees the end of file and ends; it waits for nobody."""
        if self._stream is not None and self._process is not None:
            self._stream.close()
            self._stream = None
            self._process.wait()
            self._process = None
