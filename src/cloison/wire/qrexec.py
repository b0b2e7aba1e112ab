"""qrexec on the wire: control channel, the daemon's local socket and data channels; bytes in, messages out.

What a qube sends is total here: every type, length, name and port is checked before a message leaves `Decoder`. What is
refused for one call only (a bad name or request id) comes out as `BadTrigger`, so that the daemon can answer it; everything
else outside the protocol raises PeerError, and the connection is dropped. Facts: reference/qrexec.md 3-7, 9.1, 10.1.

Command lines are text here: UTF-8, with bytes that aren't as lone surrogates ("surrogateescape"), so they survive unchanged.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cloison.errors import PeerError

CONTROL_PORT: Final = 512
FIRST_DATA_PORT: Final = 513
DATA_PORTS: Final = 256                  # 513 to 768

STDIN: Final = 0x190
STDOUT: Final = 0x191
STDERR: Final = 0x192
EXIT_CODE: Final = 0x193
EXEC_CMDLINE: Final = 0x200
JUST_EXEC: Final = 0x201
SERVICE_CONNECT: Final = 0x202
SERVICE_REFUSED: Final = 0x203
TRIGGER_SERVICE: Final = 0x210
CONNECTION_TERMINATED: Final = 0x211
TRIGGER_SERVICE3: Final = 0x212
TRIGGER_SERVICE4: Final = 0x213
HELLO: Final = 0x300

VERSION: Final = 4                       # agent and daemon, and on data channels
SOCKET_VERSION: Final = 3                # client and daemon
MAX_CHUNK: Final = 65536
MAX_CHUNK_2: Final = 4096                # if the negotiated version is 2
MAX_SERVICE: Final = 65000               # SERVICE+ARGUMENT in a trigger with its NUL; descriptor in a command line
MAX_SERVICE_NAME: Final = 255            # SERVICE alone: it is a file name
MAX_REQUEST: Final = 65535               # body from client to daemon
MAX_USER: Final = 255                    # how much a default user may lengthen a request on its way to the agent
MAX_COMMAND: Final = MAX_REQUEST - 9     # bytes of a command line in a request, without its NUL
MAX_NUMBER: Final = 0xFFFFFFFF

HEADER: Final = struct.Struct("<II")     # type, length of the body
PARAMS: Final = struct.Struct("<II")     # domain, port
_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_ID: Final = 32
_V2: Final = struct.Struct("<64s32s32s")   # service, target, request id
_V3: Final = struct.Struct("<64s32s")      # target, request id
_V4: Final = struct.Struct("<64s64s32s")   # source, target, request id

_ALNUM: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_ID_CHARACTERS: Final = _ALNUM + b"_. -"


def _replacing(allowed: bytes) -> bytes:
    """A table for bytes.translate: every byte not allowed becomes `_`."""
    return bytes(byte if byte in allowed else 0x5F for byte in range(256))


_SERVICE_TABLE: Final = _replacing(_ALNUM + b"_-.+")
_TARGET_TABLE: Final = _replacing(_ALNUM + b"_-.@:")


# -- messages ------------------------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The peer's protocol version, as it sent it. `Decoder.version` is what both use from now on."""

    version: int


class Exec(NamedTuple):
    """EXEC_CMDLINE or JUST_EXEC. Port 0, from a client only: the daemon chooses one."""

    kind: int
    domain: int
    port: int
    command: str


class ServiceConnect(NamedTuple):
    """The call with this request id (32 bytes) was accepted; its data goes to that domain and port."""

    domain: int
    port: int
    request_id: bytes
    sent: int = 32                       # bytes of the id that were sent: some clients leave out the filling


class Allocated(NamedTuple):
    """Daemon to client: the data channel of the request just sent."""

    kind: int
    domain: int
    port: int


class ServiceRefused(NamedTuple):
    request_id: bytes


class Terminated(NamedTuple):
    """The agent's side uses that data channel no longer."""

    domain: int
    port: int


class Trigger(NamedTuple):
    """A program in a qube wants a call. Names hold only the characters policy knows; source and target may be empty."""

    source: str
    target: str
    request_id: bytes
    service: str                         # SERVICE or SERVICE+ARGUMENT


class BadTrigger(NamedTuple):
    """A trigger to be answered with `service_refused(request_id)` and nothing else. The id is echoed, never read."""

    untrusted_request_id: bytes
    reason: str


class Data(NamedTuple):
    """STDIN, STDOUT or STDERR; an empty payload is the end of that stream."""

    kind: int
    payload: bytes


class Exit(NamedTuple):
    """Exit status of the service, -2**31 to 2**31-1; 255 if the peer sent a short one."""

    status: int


Message = Hello | Exec | ServiceConnect | Allocated | ServiceRefused | Terminated | Trigger | BadTrigger | Data | Exit

Lengths = dict[int, tuple[int, int]]     # type -> least and greatest length of its body


class Role(NamedTuple):
    """What one end of one channel may receive."""

    versions: dict[int, Lengths]         # by protocol version, oldest first; the newest is our own
    handshake: bool = True               # HELLO comes first
    zero_port: bool = False              # port 0 stands for "choose one"
    any_port: bool = False               # from a trusted peer: its own affair
    alias: dict[int, int] = {}           # types taken for another


_TRIGGER3: Final = (_V3.size + 1, _V3.size + MAX_SERVICE)
_TRIGGER4: Final = (_V4.size + 1, _V4.size + MAX_SERVICE)
_TERMINATED: Final = (PARAMS.size, PARAMS.size)
_TO_AGENT: Final[Lengths] = {
    EXEC_CMDLINE: (PARAMS.size + 1, MAX_REQUEST + MAX_USER),
    JUST_EXEC: (PARAMS.size + 1, MAX_REQUEST + MAX_USER),
    SERVICE_CONNECT: (PARAMS.size + 1, PARAMS.size + _ID),
    SERVICE_REFUSED: (_ID, _ID),
}


def _data(chunk: int) -> Lengths:
    return {STDIN: (0, chunk), STDOUT: (0, chunk), STDERR: (0, chunk), EXIT_CODE: (0, _I32.size)}


_DATA: Final = {2: _data(MAX_CHUNK_2), 3: _data(MAX_CHUNK), 4: _data(MAX_CHUNK)}

FROM_AGENT: Final = Role({
    2: {TRIGGER_SERVICE: (_V2.size, _V2.size), CONNECTION_TERMINATED: _TERMINATED},
    3: {TRIGGER_SERVICE3: _TRIGGER3, CONNECTION_TERMINATED: _TERMINATED},
    4: {TRIGGER_SERVICE3: _TRIGGER3, TRIGGER_SERVICE4: _TRIGGER4, CONNECTION_TERMINATED: _TERMINATED},
})
FROM_DAEMON: Final = Role({2: _TO_AGENT, 3: _TO_AGENT, 4: _TO_AGENT}, any_port=True)
FROM_CLIENT: Final = Role({3: {
    EXEC_CMDLINE: (PARAMS.size + 1, MAX_REQUEST),
    JUST_EXEC: (PARAMS.size + 1, MAX_REQUEST),
    SERVICE_CONNECT: (PARAMS.size + 1, PARAMS.size + _ID),
}}, zero_port=True)
TO_CLIENT: Final = Role({3: dict.fromkeys((EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT), (PARAMS.size, PARAMS.size))})
FROM_CLIENT_VM: Final = Role({4: {TRIGGER_SERVICE4: _TRIGGER4}}, handshake=False)
FROM_CALLER: Final = Role(_DATA, alias={STDOUT: STDIN})       # what a service reads
FROM_SERVICE: Final = Role(_DATA, alias={STDIN: STDOUT})      # what a caller reads

_NO_LENGTHS: Final[Lengths] = {HELLO: (_U32.size, _U32.size)}


class Decoder:
    """Feed it bytes as they come; take messages out until None, which means "need more".

    The first message is HELLO, unless the role has no handshake; `version` is 0 until then. Raises PeerError for whatever
    is outside the protocol, a length before its body arrives: drop the connection then. Whoever drains it after each feed
    holds at most one message and one feed.
    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self._buffer = bytearray()
        self._start = 0                  # of the next message
        self.version = 0
        self._lengths = _NO_LENGTHS
        if not role.handshake:
            self._agree(max(role.versions))

    def feed(self, untrusted: bytes | bytearray | memoryview) -> None:
        if self._start:
            del self._buffer[:self._start]
            self._start = 0
        self._buffer += untrusted

    def __len__(self) -> int:
        """Bytes of what has not come whole yet."""
        return len(self._buffer) - self._start

    def next_message(self) -> Message | None:
        start = self._start + HEADER.size
        if len(self._buffer) < start:
            return None
        kind, length = HEADER.unpack_from(self._buffer, self._start)
        limits = self._lengths.get(kind)
        if limits is None:
            raise PeerError("unexpected message type", kind)
        if not limits[0] <= length <= limits[1]:
            raise PeerError("message length out of range", kind, length)
        end = start + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[start:end])
        message = self._parse(kind, body)
        self._start = end
        return message

    def _agree(self, version: int) -> None:
        self.version = version
        self._lengths = self._role.versions[version]

    def _parse(self, kind: int, untrusted: bytes) -> Message:
        if kind <= STDERR:               # types below are refused already, and above are no streams
            return Data(self._role.alias.get(kind, kind), untrusted)
        if kind == EXIT_CODE:
            return Exit(_I32.unpack(untrusted)[0] if len(untrusted) == _I32.size else 255)
        if kind == HELLO:
            return self._hello(_U32.unpack(untrusted)[0])
        if kind == SERVICE_REFUSED:
            return ServiceRefused(untrusted)
        if kind in (TRIGGER_SERVICE, TRIGGER_SERVICE3, TRIGGER_SERVICE4):
            return _trigger(kind, untrusted)
        return self._with_port(kind, untrusted)

    def _hello(self, untrusted_version: int) -> Hello:
        version = min(untrusted_version, max(self._role.versions))
        if version not in self._role.versions:
            raise PeerError("protocol version too old", untrusted_version)
        self._agree(version)
        return Hello(untrusted_version)

    def _with_port(self, kind: int, untrusted: bytes) -> Message:
        domain, port = PARAMS.unpack_from(untrusted)
        if not (is_data_port(port) or self._role.any_port or (port == 0 and self._role.zero_port)):
            raise PeerError("port out of range", port)
        if kind == CONNECTION_TERMINATED:
            return Terminated(domain, port)
        if len(untrusted) == PARAMS.size:
            return Allocated(kind, domain, port)
        if kind == SERVICE_CONNECT:
            ident = untrusted[PARAMS.size:]
            if ident[-1]:
                raise PeerError("a request id must end in NUL")
            return ServiceConnect(domain, port, ident.ljust(_ID, b"\0"), len(ident))
        if untrusted.find(0, PARAMS.size) != len(untrusted) - 1:
            raise PeerError("a command line must end in NUL and hold no other")
        return Exec(kind, domain, port, untrusted[PARAMS.size:-1].decode("utf-8", "surrogateescape"))


def is_data_port(port: int) -> bool:
    return FIRST_DATA_PORT <= port < FIRST_DATA_PORT + DATA_PORTS


# -- triggers ------------------------------------------------------------------------------------------------------------


def _trigger(kind: int, untrusted: bytes) -> Trigger | BadTrigger:
    source = b""
    if kind == TRIGGER_SERVICE4:
        source, target, request_id = _V4.unpack_from(untrusted)
        service = untrusted[_V4.size:]
    elif kind == TRIGGER_SERVICE3:
        target, request_id = _V3.unpack_from(untrusted)
        service = untrusted[_V3.size:]
    else:
        service, target, request_id = _V2.unpack(untrusted)
        service = service.rstrip(b"\0") + b"\0" if service.endswith(b"\0") else service
    if not _is_request_id(request_id):
        return BadTrigger(request_id, "bad request id")
    reason = _service_fault(service)
    if reason:
        return BadTrigger(request_id, reason)
    return Trigger(_name(source), _name(target), request_id, service[:-1].translate(_SERVICE_TABLE).decode("ascii"))


def _is_request_id(untrusted: bytes) -> bool:
    """Up to 31 allowed characters, a NUL, and NULs only after it."""
    text = untrusted.rstrip(b"\0")
    return len(text) < _ID and not text.translate(None, _ID_CHARACTERS)


def _service_fault(untrusted: bytes) -> str:
    """Why this service field of a trigger is refused; empty if it isn't."""
    if untrusted.find(0) != len(untrusted) - 1:
        return "the service name must end in NUL and hold no other"
    name = untrusted.find(b"+")
    length = len(untrusted) - 1 if name < 0 else name
    if not 1 <= length <= MAX_SERVICE_NAME:
        return f"the service name must have 1 to {MAX_SERVICE_NAME} bytes"
    return ""


def _name(untrusted: bytes) -> str:
    """A fixed-size field as text: the last byte counts as NUL, what policy does not know becomes `_`."""
    return untrusted[:-1].partition(b"\0")[0].translate(_TARGET_TABLE).decode("ascii")


# -- encoders ------------------------------------------------------------------------------------------------------------


def _message(kind: int, *parts: bytes) -> bytes:
    return b"".join((HEADER.pack(kind, sum(map(len, parts))), *parts))


def _field(text: str, size: int) -> bytes:
    """NUL-terminated and zero-filled. Raises ValueError if it doesn't fit or holds a NUL."""
    data = text.encode("ascii")
    if len(data) >= size or b"\0" in data:
        raise ValueError(f"{text!r} does not fit a field of {size} bytes")
    return data.ljust(size, b"\0")


def _text(text: str, limit: int) -> bytes:
    """NUL-terminated. Raises ValueError if it is longer than `limit` bytes with its NUL, or holds a NUL."""
    data = text.encode("utf-8", "surrogateescape") + b"\0"
    if len(data) > limit or data.find(0) != len(data) - 1:
        raise ValueError(f"a text of {len(data) - 1} bytes is too long or holds a NUL")
    return data


def request_id(text: str) -> bytes:
    """32 bytes for a call's id. Raises ValueError for more than 31 characters or others than `A-Za-z0-9_. -`."""
    field = _field(text, _ID)
    if not _is_request_id(field):
        raise ValueError(f"{text!r} is not a request id")
    return field


def hello(version: int) -> bytes:
    return _message(HELLO, _U32.pack(version))


def exec_command(kind: int, domain: int, port: int, command: str) -> bytes:
    """EXEC_CMDLINE or JUST_EXEC. Raises ValueError for a command with a NUL or beyond the limit."""
    limit = MAX_REQUEST + MAX_USER if port else MAX_REQUEST   # only a client leaves the port open
    return _message(kind, PARAMS.pack(domain, port), _text(command, limit - PARAMS.size))


def service_connect(domain: int, port: int, ident: bytes) -> bytes:
    """`ident`: the request id's 32 bytes, or as many as were sent."""
    return _message(SERVICE_CONNECT, PARAMS.pack(domain, port), ident)


def service_refused(ident: bytes) -> bytes:
    """`ident`: the request id's 32 bytes, as they came."""
    return _message(SERVICE_REFUSED, ident)


def allocated(kind: int, domain: int, port: int) -> bytes:
    """Daemon to client: `kind` is that of the request."""
    return _message(kind, PARAMS.pack(domain, port))


def connection_terminated(domain: int, port: int) -> bytes:
    return _message(CONNECTION_TERMINATED, PARAMS.pack(domain, port))


def trigger_service2(target: str, ident: bytes, service: str) -> bytes:
    """Protocol 2. Raises ValueError for a name that doesn't fit."""
    return _message(TRIGGER_SERVICE, _field(service, 64), _field(target, 32), ident)


def trigger_service3(target: str, ident: bytes, service: str) -> bytes:
    """Protocol 3. Raises ValueError for a name that doesn't fit."""
    return _message(TRIGGER_SERVICE3, _field(target, 64), ident, _text(service, MAX_SERVICE))


def trigger_service4(source: str, target: str, ident: bytes, service: str) -> bytes:
    """Protocol 4. An empty source: no other than the caller itself. Raises ValueError for a name that doesn't fit."""
    return _message(TRIGGER_SERVICE4, _field(source, 64), _field(target, 64), ident, _text(service, MAX_SERVICE))


def data(kind: int, payload: bytes | memoryview, version: int = VERSION) -> Iterator[bytes]:
    """Messages that carry the payload, split to the version's limit. Nothing for an empty one: that would end the stream."""
    limit = MAX_CHUNK_2 if version == 2 else MAX_CHUNK
    view = memoryview(payload)
    for start in range(0, len(view), limit):
        chunk = view[start:start + limit]
        yield b"".join((HEADER.pack(kind, len(chunk)), chunk))


def end_of_stream(kind: int) -> bytes:
    """No more STDIN, STDOUT or STDERR."""
    return HEADER.pack(kind, 0)


def exit_code(status: int) -> bytes:
    return _message(EXIT_CODE, _I32.pack(status))


# -- ports ---------------------------------------------------------------------------------------------------------------


class Ports:
    """Data ports of one daemon. The lowest free one, so that a freed port is the next one given.

    With another qube as peer every second port only: odd places for the daemon of the qube with the lower id, even ones
    for the other, so that the two daemons of a pair never choose the same number.
    """

    def __init__(self, own_domain: int) -> None:
        self._own = own_domain
        self._peers: dict[int, int] = {}   # port -> domain at the other end

    def take(self, peer: int) -> int | None:
        """A port for a channel with that domain, or None if all are in use."""
        first = FIRST_DATA_PORT + (1 if peer > self._own else 0)
        for port in range(first, FIRST_DATA_PORT + DATA_PORTS, 2 if peer else 1):
            if port not in self._peers:
                self._peers[port] = peer
                return port
        return None

    def free(self, peer: int, port: int) -> bool:
        """Give it back. False, and nothing changed, if it isn't reserved for that domain."""
        if self._peers.get(port) != peer:
            return False
        del self._peers[port]
        return True


# -- command lines -------------------------------------------------------------------------------------------------------

_RPC: Final = "QUBESRPC "
_NOGUI: Final = "nogui:"
_DEFAULT_USER: Final = "DEFAULT:"
TARGET_TYPES: Final = ("name", "keyword")


class Command(NamedTuple):
    """A command line. Either `command` (for the user's shell) or `service` and `source`; the other is empty."""

    user: str                            # empty: a call to the host
    nogui: bool = False
    command: str = ""
    service: str = ""
    argument: str | None = None          # None: no `+` at all
    source: str = ""
    target_type: str = ""                # host only: name or keyword
    target: str = ""                     # host only; a keyword has no leading `@`

    @property
    def full_name(self) -> str:
        """SERVICE or SERVICE+ARGUMENT, as in the command line."""
        return self.service if self.argument is None else f"{self.service}+{self.argument}"

    @property
    def descriptor(self) -> str:
        """What a socket service is sent first (a NUL follows)."""
        words = (self.full_name, self.source, self.target_type, self.target)
        return " ".join(words if self.target_type else words[:2])


def parse_command(untrusted: str) -> Command:
    """`USER:[nogui:]COMMAND` or `USER:[nogui:]QUBESRPC SERVICE[+ARGUMENT] SOURCE`, as sent to a qube.

    Raises PeerError for anything else: the call ends with status 125 then.
    """
    user, colon, rest = untrusted.partition(":")
    if not colon or not 1 <= len(user) <= MAX_USER:
        raise PeerError("a command line must begin with a user name and ':'")
    nogui, rest = _cut_nogui(rest)
    if not rest.startswith(_RPC):
        return Command(user, nogui, rest)
    words = _service_words(rest, 2)
    return Command(user, nogui, "", *_split_service(words[0]), words[1])


def parse_own_command(line: str) -> Command:
    """`[nogui:]QUBESRPC SERVICE[+ARGUMENT] SOURCE [TYPE TARGET]`: the host calls itself. Raises PeerError."""
    nogui, rest = _cut_nogui(line)
    if not rest.startswith(_RPC) or rest.count(" ") != 2:
        return parse_host_command(line)
    words = _service_words(rest, 2)
    return Command("", nogui, "", *_split_service(words[0]), words[1])


def parse_host_command(untrusted: str) -> Command:
    """`[nogui:]QUBESRPC SERVICE[+ARGUMENT] SOURCE TYPE TARGET`, as for a qube's call to the host. Raises PeerError."""
    nogui, rest = _cut_nogui(untrusted)
    if not rest.startswith(_RPC):
        raise PeerError("only a service can be called on the host")
    words = _service_words(rest, 4)
    if words[2] not in TARGET_TYPES:
        raise PeerError("the target of a call must be a name or a keyword")
    return Command("", nogui, "", *_split_service(words[0]), *words[1:])


def _cut_nogui(text: str) -> tuple[bool, str]:
    if "\0" in text or len(text) > MAX_REQUEST:
        raise PeerError("a command line may hold no NUL and no more than a request")
    return text.startswith(_NOGUI), text.removeprefix(_NOGUI)


def _size(text: str) -> int:
    """Bytes that it takes on the wire; a lone surrogate is one byte there."""
    return len(text.encode("utf-8", "replace"))


def _service_words(text: str, count: int) -> list[str]:
    """The words after QUBESRPC, one space between them, none empty."""
    descriptor = text.removeprefix(_RPC)
    if _size(descriptor) > MAX_SERVICE:
        raise PeerError("service descriptor too long")
    words = descriptor.split(" ")
    if len(words) != count or not all(words):
        raise PeerError(f"a service call must have {count} words", len(words))
    return words


def _split_service(full_name: str) -> tuple[str, str | None]:
    """Service and argument. The service is a file's name: no `/`, not `.` or `..`."""
    service, plus, argument = full_name.partition("+")
    if not 1 <= _size(service) <= MAX_SERVICE_NAME:
        raise PeerError("service name length out of range", len(service))
    if "/" in service or service in (".", ".."):
        raise PeerError("a service name can't be a path")
    return service, argument if plus else None


def build_command(command: Command) -> str:
    """Inverse of both parsers. Raises ValueError for what they would refuse or read differently."""
    text = f"{_NOGUI if command.nogui else ''}{_RPC + command.descriptor if command.service else command.command}"
    if command.user:
        text = f"{command.user}:{text}"
    try:
        parsed = parse_command(text) if command.user else parse_host_command(text)
    except PeerError as error:
        raise ValueError(f"not a command line: {error}") from error
    if parsed != command:
        raise ValueError("not a command line: a part holds a separator")
    return text


def with_default_user(command: str, user: str) -> str:
    """The daemon's part: `DEFAULT` at the beginning is replaced by the qube's default user."""
    return f"{user}:{command.removeprefix(_DEFAULT_USER)}" if command.startswith(_DEFAULT_USER) else command
