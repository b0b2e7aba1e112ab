"""A command of the host whose input and output are connected to a qube."""
from __future__ import annotations

import contextlib
import os


class Local:
    """A running local command, handed to the host's shell because a person typed it there.

    `input` is the end to write to, `output` the one to read from. Leaving the context closes both; the command ends by itself.
    """

    def __init__(self, command: str, qube: str) -> None:
        child_in, self.input = os.pipe2(os.O_CLOEXEC)
        self.output, child_out = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = os.posix_spawn(
                "/bin/sh", ["/bin/sh", "-c", command], {**os.environ, "QREXEC_REMOTE_DOMAIN": qube},
                file_actions=[(os.POSIX_SPAWN_DUP2, child_in, 0), (os.POSIX_SPAWN_DUP2, child_out, 1)],
            )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        self._status: int | None = None

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in (self.input, self.output):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.input = self.output = -1

    def wait(self) -> int:
        """Its exit status; 128 + N for signal N."""
        self.close()
        if self._status is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._status = code if code >= 0 else 128 - code
        return self._status
