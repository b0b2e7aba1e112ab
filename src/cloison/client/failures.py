"""What can go wrong with a program in a qube, beyond what qubesd says. Whatever a failure carries of the qube's is `untrusted`."""
from __future__ import annotations

from cloison.errors import BadValue, CloisonError, QubeError
from cloison.values import InvalidValue, QubeName

_SHOWN = 200                             # characters of a qube's words in a sentence of ours


class QrexecError(CloisonError):
    """The qube's qrexec can't be reached or broke the protocol."""

    exit_status = 125


class BadCommand(CloisonError):
    """A command that no qrexec message can carry."""


class Unfinished(CloisonError):
    """A program whose end nobody saw. `untrusted_stdout`, `untrusted_stderr`: what was captured of it until then."""

    def __init__(self, qube: str, untrusted_stdout: bytes = b"", untrusted_stderr: bytes = b"") -> None:
        super().__init__(qube)
        self.qube, self.untrusted_stdout, self.untrusted_stderr = qube, untrusted_stdout, untrusted_stderr


class CallLost(Unfinished, QubeError):
    """The qube, or its agent, ended before the program's status came. No status of a program's is taken for this."""

    hint = "qvm-ls shows whether the qube still runs."

    def __str__(self) -> str:
        return f"{self.qube} ended while a program ran in it, or lost it: its exit status is not known"


class CallTimeout(Unfinished):
    """It took longer than `seconds`. What `run` waited for has been ended in the qube; a handle's timeout ends nothing."""

    hint = "A run is ended in the qube; the program of a handle goes on until it is killed, or its block is left."

    def __init__(self, qube: str, seconds: float, untrusted_stdout: bytes = b"", untrusted_stderr: bytes = b"") -> None:
        super().__init__(qube, untrusted_stdout, untrusted_stderr)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the program in {self.qube} took longer than {self.seconds:g} seconds"


class TooMuchOutput(CloisonError):
    """The qube sent more than the `limit` of bytes that the caller takes; the program was ended."""

    hint = "Raise max_output or max_size; or take the output as it comes, from a handle."

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the qube sent more than the {self.limit} bytes that are taken"


class CommandFailed(CloisonError):
    """A program that was to succeed ended with another status than 0."""

    def __init__(self, qube: str, status: int, untrusted_stdout: bytes = b"", untrusted_stderr: bytes = b"") -> None:
        super().__init__(qube, status)
        self.qube, self.status = qube, status
        self.untrusted_stdout, self.untrusted_stderr = untrusted_stdout, untrusted_stderr

    def __str__(self) -> str:
        return f"the program in {self.qube} ended with status {self.status}{said(self.untrusted_stderr)}"


class TransferFailed(CloisonError):
    """A file was not put or got whole. What had its name before is unchanged, there and here."""

    def __init__(self, qube: str, path: str, reason: str) -> None:
        super().__init__(qube, path, reason)
        self.qube, self.path, self.reason = qube, path, reason

    def __str__(self) -> str:
        return f"{self.qube}: {self.path}: {self.reason}"


def said(untrusted: bytes) -> str:
    """The last line a qube said, for a sentence of ours: short, in characters that drive no terminal."""
    lines = untrusted.decode("ascii", "replace").strip().split("\n")
    text = "".join(char if char.isascii() and char.isprintable() else "_" for char in lines[-1][:_SHOWN])
    return f"; it said: {text}" if text else ""


def qube_name(text: str) -> QubeName:
    """Raises BadValue."""
    try:
        return QubeName(text)
    except InvalidValue as error:
        raise BadValue(str(error)) from error
