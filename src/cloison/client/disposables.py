"""A disposable for one call: it lives as long as the connection it was asked for on (docs/architecture.md "Leases")."""
from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from types import TracebackType

from cloison.client.connection import Connection, NoDaemon, Stream
from cloison.client.domains import DOM0
from cloison.errors import BadRequest, BadValue, CloisonError
from cloison.values import QubeName

READY = "disposable-ready"
ENDED = "qubesd ended before the disposable was ready"
MAX_NUMBER = 10**9


def shape(memory: int | None, vcpus: int | None) -> dict[str, str]:
    """Properties that are set before the start. Raises BadValue."""
    wanted = {"memory": memory, "vcpus": vcpus}
    for name, value in wanted.items():
        if value is not None and not 0 < value < MAX_NUMBER:
            raise BadValue(f"{name} of a disposable must be a number above 0, not {value!r}")
    return {name: str(value) for name, value in wanted.items() if value is not None}


def payload(wanted: dict[str, str]) -> bytes:
    return " ".join(f"{name}={value}" for name, value in wanted.items()).encode()


class Disposable:
    """A running disposable. Leaving the context, and this process's death, end it; nobody waits for that."""

    def __init__(
        self, connection: Connection, base: str = DOM0, while_waiting: Callable[[Stream], None] = lambda _: None, *,
        memory: int | None = None, vcpus: int | None = None,
    ) -> None:
        """`base`: the disposable template, or dom0 for the default one. Raises CloisonError if it can't be had.

        `while_waiting` is called with what becomes readable when the disposable is ready: the place for progress. `memory` (MiB)
        and `vcpus`: the template's, if not said. The first disposable of a new size waits for its warm image (docs/client.md).
        """
        self._connection = connection
        self._while_waiting = while_waiting
        self._lease: Stream | None = None
        self._shape = shape(memory, vcpus)
        try:
            self.name = self._with_lease(base)
        except BadRequest:               # another qubesd, which knows no leases
            self.name = self._without_lease(base)

    def _with_lease(self, base: str) -> str:
        lease = self._connection.stream(base, "cloison.Disposable", payload=payload(self._shape))
        try:
            self._while_waiting(lease)
            _await_answer(lease)
            for event in lease:
                if event.event == READY:
                    self._lease = lease
                    return QubeName(event.subject)
            raise NoDaemon(ENDED)
        except BaseException:
            lease.close()
            raise

    def _without_lease(self, base: str) -> str:
        name = QubeName(self._connection.call(base, "admin.vm.CreateDisposable").decode())
        try:
            for prop, value in self._shape.items():
                self._connection.call(name, "admin.vm.property.Set", prop, value.encode())
            self._connection.call(name, "admin.vm.Start")
        except BaseException:
            with contextlib.suppress(CloisonError):
                self._connection.call(name, "admin.vm.Remove")   # qubesd may have done it
            raise
        return name

    def __enter__(self) -> Disposable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lease is not None:
            self._lease.close()
            return
        with contextlib.suppress(CloisonError):
            self._connection.call(self.name, "admin.vm.Kill")


def watch_qubesd(lease: int) -> int:
    """A descriptor that becomes readable when the qubesd at the other end ends; the warden may hold our connection open then.

    The caller closes it. Raises NoDaemon.
    """
    with socket.socket(fileno=os.dup(lease)) as stream:
        credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    try:
        return os.pidfd_open(struct.unpack("3i", credentials)[0])
    except ProcessLookupError as error:
        raise NoDaemon(ENDED) from error


def _await_answer(lease: Stream) -> None:
    """Until qubesd answers. Raises NoDaemon when it ends before."""
    qubesd = watch_qubesd(lease.fileno())
    try:
        poll = select.poll()
        poll.register(lease, select.POLLIN)
        poll.register(qubesd, select.POLLIN)
        if lease.fileno() not in dict(poll.poll()):
            raise NoDaemon(ENDED)
    finally:
        os.close(qubesd)
