"""The host's end of one qube's QubesDB: the tree, and its copy in the guest kept equal over vchan 111."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from cloison.errors import PeerError
from cloison.qdb.tree import HOST, Tree
from cloison.runtime.port import Outbox, Port
from cloison.wire import qdb
from cloison.wire.mux import Address

MAX_WAITING = 1 << 20           # bytes of answers that a guest has not read, beside the one copy that it may ask for


class Server:
    """A Handler of the one channel. `on_change(path)` is called for what the guest writes under a watched prefix."""

    def __init__(self, port: Port, xid: int, on_change: Callable[[str], None], on_violation: Callable[[str], None]) -> None:
        self._port, self._xid = port, xid
        self._on_change, self._on_violation = on_change, on_violation
        self.tree = Tree(HOST)
        self._decoder = qdb.Decoder(qdb.VCHAN)
        self._outbox: Outbox | None = None
        self._copy = 0                   # bytes of the copy that was asked for on this connection

    def fill(self, entries: Mapping[str, str]) -> None:
        for path, value in entries.items():
            self.tree.store(path, value.encode("ascii", "replace"), by_guest=False)

    def watch(self, *paths: str) -> None:
        """Tell of what the guest changes there."""
        for path in paths:
            self.tree.watch(self, path)

    def connect(self) -> None:
        self._copy = 0
        self._outbox = Outbox(self._port, self._port.open(Address(self._xid, 0, qdb.PORT), self))

    def reconnect(self, port: Port) -> None:
        """To a new agent in the qube; what is in the tree stays."""
        self._port = port
        self._decoder = qdb.Decoder(qdb.VCHAN)
        self.connect()

    def write(self, entries: Mapping[str, str | None]) -> None:
        """The host's own changes; None removes. Raises ValueError for what can't be stored."""
        for path, value in entries.items():
            outcome = self.tree.remove(path) if value is None else self.tree.write(path, value.encode("ascii", "replace"))
            self._send(outcome.forward)
        if self._outbox is not None and len(self._outbox) > MAX_WAITING:
            self._on_violation("what the host writes to QubesDB is not read")

    def data(self, untrusted: bytes) -> None:
        if self._outbox is None:
            return
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                outcome = self.tree.handle_peer(message)
                if message.kind == qdb.MULTIREAD:
                    self._copy = len(outcome.reply)      # once a connection; a guest's full share is more than MAX_WAITING
                self._send(outcome.reply)
                for fired in outcome.fired:
                    self._on_change(fired.path)
            if len(self._outbox) > MAX_WAITING + self._copy:
                raise PeerError("answers are not read")
        except PeerError as error:
            self._on_violation(str(error))
            return
        self._port.consumed(self._outbox.channel, len(untrusted))

    def _send(self, message: bytes) -> None:
        if message and self._outbox is not None:
            self._outbox.put(message)

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        self._outbox = None
        self.tree.peer_lost()
