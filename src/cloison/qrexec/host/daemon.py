"""The host's end of one qube's qrexec: control channel, local socket for callers, data ports (reference/qrexec.md 4-8).

It runs over either transport. Over a multiplexer (`Port`) data channels pass through here, unread, to whoever has the other
end: a descriptor that came with the request, or a vchan-socket. Over `VchanSocket` (`direct`) the qube meets its peers by itself.

What the guest sends here is the control channel only. A guest that breaks the protocol loses qrexec (`on_violation`); what it
asks for is for `Outgoing` to decide, which also sets the pace: what has not been read yet has no credit, so it waits in the qube.
"""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cloison.errors import PeerError
from cloison.qrexec.host.local_socket import Client, LocalSocket
from cloison.qrexec.host.uses import GRACE, UNOPENED, Use
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.port import Channels, Outbox
from cloison.runtime.relay import Relay
from cloison.runtime.vchan_dialer import Dialer
from cloison.wire import qrexec
from cloison.wire.mux import Address

# Bytes that wait for the agent: beyond it no caller is served, and an agent that makes calls and reads no answer is hostile.
MAX_ANSWERS = 1 << 20

# What a qube asks for: to be answered by `refuse` or one of the `connect_` calls, now or later.
Asked = Callable[[qrexec.Trigger], None]
# Whether a caller on the local socket may answer that request id, once.
Answerable = Callable[[bytes], bool]


@dataclass(frozen=True)
class Served:
    """The qube this daemon is for."""

    xid: int
    name: str
    uuid: str
    default_user: str


class Daemon:
    """`connect`, then `start` when the guest is somebody; `close` removes what was made in the folder.

    `dialer`: where callers and daemons meet that send no descriptors. `on_ready` is called when the agent has said hello.
    `grace`, `unopened`: seconds that the guest has to end a call, or to begin one, whose caller is gone.
    """

    def __init__(
        self, channels: Channels, qube: Served, folder: str, on_violation: Callable[[str], None], *, direct: bool = False,
        dialer: Dialer | None = None, on_ready: Callable[[], None] = lambda: None, grace: float = GRACE, unopened: float = UNOPENED,
    ) -> None:
        self.qube, self.folder, self.direct = qube, folder, direct
        self._grace, self._unopened = grace, unopened
        self._channels, self._on_violation, self._dialer, self._on_ready = channels, on_violation, dialer, on_ready
        self.asked: Asked = self._refuse_all
        self.pace: Callable[[], float] = lambda: 0.0     # at each request: seconds until the guest is heard again
        self.answerable: Answerable = lambda _ident: False
        self.on_restart: Callable[[], None] = lambda: None
        self._ports = qrexec.Ports(qube.xid)
        self._uses: dict[int, Use] = {}
        self._relays: set[Relay] = set()             # of channels whose port is in another daemon's table
        self._local = LocalSocket(folder, (str(qube.xid), qube.name, f"uuid:{qube.uuid}"), self._request)
        self._decoder = qrexec.Decoder(qrexec.FROM_AGENT)
        self._outbox: Outbox | None = None           # None: no control channel
        self._early: list[tuple[bytes, Callable[[], None] | None]] = []   # until the agent has said hello
        self._unread = 0                             # bytes of the guest's that are still to be given credit for
        self._resting: asyncio.TimerHandle | None = None     # until it is heard again
        self._greeted = self._started = self._closed = False

    # -- life ----------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the control channel; the guest may not be listening yet."""
        self._decoder = qrexec.Decoder(qrexec.FROM_AGENT)
        self._unread = 0
        self._greeted = False
        channel = self._channels.open(Address(self.qube.xid, 0, qrexec.CONTROL_PORT), self)
        self._outbox = Outbox(self._channels, channel)

    def start(self) -> None:
        """Accept callers. Raises OSError."""
        self._started = True
        self._local.listen()

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._stop_resting()
        self._local.close()
        for port in list(self._uses):
            use = self._uses.pop(port)
            use.stop()
            if use.relay is not None:
                use.relay.end()
        for relay in list(self._relays):
            relay.end()

    # -- callers -------------------------------------------------------------------------------------------------------

    def _request(self, client: Client, message: qrexec.Message, stream: socket.socket | None) -> bytes:
        """A caller's one request; the answer to it. Raises PeerError when it can't be served."""
        if self._outbox is None:
            raise PeerError("the agent is gone")
        if len(self._outbox) + sum(len(message) for message, _ in self._early) > MAX_ANSWERS:
            raise PeerError("the agent takes no more requests now")
        if isinstance(message, qrexec.Exec) and message.port == 0:
            return self._execute(client, message, stream)
        if isinstance(message, qrexec.ServiceConnect):
            return self._accept_for(client, message, stream)
        raise PeerError("not a request that can be served here")

    def _execute(self, client: Client, message: qrexec.Exec, stream: socket.socket | None) -> bytes:
        """A program in this qube, with its data channel to `message.domain`."""
        if stream is None and not self.direct and self._dialer is None:
            raise PeerError("a request without a data channel")
        port = self._take(message.domain, client)
        address = Address(message.domain, self.qube.xid, port)
        if stream is not None or not self.direct:
            self._expect(self._uses[port], address, stream)
        command = qrexec.with_default_user(message.command, self.qube.default_user)
        self._post(qrexec.exec_command(message.kind, message.domain, port, command))
        return qrexec.allocated(message.kind, self.qube.xid, port)

    def _expect(self, use: Use, address: Address, stream: socket.socket | None) -> None:
        """The qube will open that channel; without a descriptor the caller listens on a vchan-socket."""
        use.parts.add("data")
        relay = use.relay = Relay(self._channels, None, stream, partial(self._done, address.port, "data"))
        give_up = self._dialer.dial(address, relay.attach, relay.end) if stream is None and self._dialer else lambda: None
        unwatch = watch_hangup(stream, partial(self._caller_left, use)) if stream is not None else lambda: None

        def taken_up(channel: int) -> Relay:
            unwatch()                    # the relay sees to its stream from now on
            use.stop_timer()
            return relay.bind(channel)

        def cancel() -> None:
            self._channels.unlisten(address)
            give_up()
            unwatch()

        self._channels.listen(address, taken_up)
        use.cancel = cancel

    def _caller_left(self, use: Use) -> None:
        """Before the qube has taken the channel up. What was sent on it still counts, if the qube does so soon."""
        assert use.relay is not None
        use.overdue = asyncio.get_running_loop().call_later(self._unopened, use.relay.end)

    def _accept_for(self, client: Client, message: qrexec.ServiceConnect, stream: socket.socket | None) -> bytes:
        """A caller answers a request of the qube's: its data goes where the caller says."""
        if not self.answerable(message.request_id):
            raise PeerError("no such request waits")
        ident = message.request_id[:message.sent]
        if message.port:
            self.connect_peer(ident, message.domain, message.port, stream)
            return b""
        try:
            port = self._take(message.domain, client)
        except PeerError:
            self.refuse(message.request_id)
            raise
        opening = None
        if stream is not None or not self.direct:
            self._uses[port].parts.add("data")
            done = partial(self._done, port, "data")
            opening = partial(self._open_relay, Address(self.qube.xid, message.domain, port), stream, done)
        self._post(qrexec.service_connect(message.domain, port, ident), opening)
        return qrexec.allocated(qrexec.SERVICE_CONNECT, self.qube.xid, port)

    def _take(self, peer: int, client: Client | None) -> int:
        port = self._ports.take(peer)
        if port is None:
            raise PeerError("no free data port")
        self._uses[port] = Use(peer, client)
        return port

    # -- answers to the qube's requests --------------------------------------------------------------------------------

    def refuse(self, ident: bytes) -> None:
        if self._outbox is not None:
            if len(self._outbox) > MAX_ANSWERS:
                self._on_violation("calls without end, and no answer is read")
                return
            self._post(qrexec.service_refused(ident))

    def connect_host(self, ident: bytes, serve: Callable[[Channels, Address, Callable[[], None]], None]) -> None:
        """The call is served here: `serve` opens the data channel and calls what it got last at its end.

        Raises PeerError when no port is free.
        """
        port = self._take(0, None)
        self._uses[port].parts.add("data")
        address = Address(self.qube.xid, 0, port)
        opening = partial(serve, self._channels, address, partial(self._done, port, "data"))
        self._post(qrexec.service_connect(0, port, ident), opening)

    def connect_peer(
        self, ident: bytes, peer: int, port: int, stream: socket.socket | None, on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """The call is served by domain `peer`, at a port of its own table; `stream` leads there if it isn't met directly.

        `on_end` is called when the qube's data channel has ended, if it passes through here.

        Raises PeerError when there is no way to meet it.
        """
        if stream is None and not self.direct and self._dialer is None:
            raise PeerError("the other daemon takes no descriptors")
        opening = None
        if stream is not None or not self.direct:
            opening = partial(self._open_relay, Address(self.qube.xid, peer, port), stream, on_end)
        self._post(qrexec.service_connect(peer, port, ident), opening)

    def _open_relay(self, address: Address, stream: socket.socket | None, on_end: Callable[[], None]) -> None:
        """The qube listens at that address by now, for it has been told before."""
        def ended() -> None:
            self._relays.discard(relay)
            if self._dialer is not None:
                self._dialer.unlisten(address)
            on_end()

        relay = Relay(self._channels, None, stream, ended)
        self._relays.add(relay)
        relay.bind(self._channels.open(address, relay))
        if stream is None and self._dialer is not None:
            self._dialer.listen(address, relay.attach, relay.end)

    # -- the guest -----------------------------------------------------------------------------------------------------

    def data(self, untrusted: bytes) -> None:
        if self._outbox is None:
            return
        self._decoder.feed(untrusted)
        self._unread += len(untrusted)
        if self._resting is None:
            self._hear(self._outbox)

    def _hear(self, outbox: Outbox) -> None:
        """Whatever has come, up to the request after which the guest has to wait."""
        try:
            while (message := self._decoder.next_message()) is not None:
                self._from_agent(message, outbox)
                if self._outbox is not outbox:
                    return               # it was answered by giving the channel up
                if isinstance(message, qrexec.Trigger | qrexec.BadTrigger) and (seconds := self.pace()) > 0:
                    self._resting = asyncio.get_running_loop().call_later(seconds, self._rested)
                    return
        except PeerError as error:
            self._on_violation(str(error))
            return
        count, self._unread = self._unread, 0
        self._channels.consumed(outbox.channel, count)

    def _rested(self) -> None:
        self._resting = None
        if self._outbox is not None:
            self._hear(self._outbox)

    def _stop_resting(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _from_agent(self, message: qrexec.Message, outbox: Outbox) -> None:
        if isinstance(message, qrexec.Hello):
            self._hello(outbox)
        elif isinstance(message, qrexec.Terminated):
            use = self._uses.get(message.port)
            if use is not None and use.peer == message.domain:
                self._done(message.port, "guest")
        elif isinstance(message, qrexec.Trigger):
            self.asked(message)
        elif isinstance(message, qrexec.BadTrigger):
            self.refuse(message.untrusted_request_id)

    def _hello(self, outbox: Outbox) -> None:
        outbox.put(qrexec.hello(self._decoder.version))
        self._greeted = True
        early, self._early = self._early, []
        for message, then in early:
            outbox.put(message, then)
        if self._started and not self._local.listening:      # the agent is back
            self._local.listen()
        self._on_ready()

    def _refuse_all(self, trigger: qrexec.Trigger) -> None:
        """Until somebody decides."""
        self.refuse(trigger.request_id)

    def _post(self, message: bytes, then: Callable[[], None] | None = None) -> None:
        """To the agent; `then` when it is on its way. The hello goes first."""
        if not self._greeted:
            self._early.append((message, then))
        elif self._outbox is not None:
            self._outbox.put(message, then)

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        """The agent is gone; it may come back. Data channels go on, callers that wait are hung up on (4.5)."""
        self._outbox = None
        self._stop_resting()
        self._early.clear()
        self._local.close()
        self.on_restart()
        if not self._closed:
            self.connect()

    def _done(self, port: int, part: str) -> None:
        """One side has finished with a data port; it is free when both have, and the caller is told."""
        use = self._uses.get(port)
        if use is None:
            return
        use.parts.discard(part)
        if part == "guest" and "data" in use.parts and use.relay is not None and use.relay.channel is None:   # never taken up
            use.relay.end()              # which comes back here for the data
            return
        if not use.parts:
            use.stop()
            del self._uses[port]
            self._ports.free(use.peer, port)
            if use.client is not None:
                use.client.close()
        elif part == "data":
            use.stop_timer()
            use.overdue = asyncio.get_running_loop().call_later(self._grace, self._overdue, use)

    def _overdue(self, use: Use) -> None:
        """The guest says nothing of the end: its caller waits no longer. The port stays the guest's, who may still use it."""
        if use.client is not None:
            use.client.close()
