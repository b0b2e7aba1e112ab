"""Every queue, buffer and count in a warden that a guest, or what a guest has made of its QEMU, can fill (docs/decisions/0044).

`ROWS` is the table: how many there may be, what each costs this process in bytes at most, Python's own share included, and where
it is enforced. `tests/warden/test_bounds.py` fills each to its bound and beyond and measures; a row without such a driver fails
there. Together they leave a warden below CEILING, which README promises; DATA is held by the kernel if a row was forgotten.

`RATES` is the same for what costs time instead: how many at once, and how many a second for ever. What a qube pays for itself, its
own calls, waits in its turn (qrexec/host/budget.py).
"""
from __future__ import annotations

from typing import Final, NamedTuple

from cloison.hypervisor.qemu import monitor
from cloison.hypervisor.qemu.hotplug import PORTS
from cloison.qdb import server, tree
from cloison.qrexec.host import daemon, local_socket, outgoing
from cloison.runtime import port
from cloison.warden import console, control, rejoin
from cloison.wire import mux

CEILING: Final = 64 * 10**6              # bytes of a warden's memory, whatever its guest does
IDLE: Final = 22 << 20                   # of these a warden has when nothing has happened yet: 21.3 MB measured
DATA: Final = 50 << 20                   # bytes of private memory that the kernel lets it have: it has 6 MB of files besides
HELD: Final = 8 << 20                    # bytes of calls that wait for whoever reads them, all together

LOG: Final = 1 << 20                     # bytes of the qube's log, and of the one before
LOG_BURST, LOG_RATE = 30, 0.5            # records at once, then a second: most are a guest's doing


class Row(NamedTuple):
    what: str
    most: int
    each: float                          # bytes in this process, a fifth more than measured, of Python 3.11 or 3.13 the worse
    where: str

    @property
    def bytes(self) -> int:
        return int(self.most * self.each)


ROWS: Final = (
    Row("bytes of calls that wait for their reader", HELD, 1.25, "runtime/held.py: Held, for Relay and Call"),
    Row("bytes on their way to the guest", mux.MAX_QUEUED, 2.4, "wire/mux.py: MAX_QUEUED, and as many written in part"),
    Row("bytes of one read of the guest's", port.READ, 10, "runtime/port.py: READ; frames of one byte"),
    Row("channels", mux.MAX_CHANNELS, 4000, "wire/mux.py: MAX_CHANNELS; with the relay of each"),
    Row("channels that the guest has yet to close", mux.MAX_CLOSING, 200, "wire/mux.py: MAX_CLOSING"),
    Row("bytes of requests not heard yet", mux.WINDOW, 2.6, "qrexec/host/daemon.py: the control channel's credit"),
    Row("bytes of requests and answers for the agent", daemon.MAX_ANSWERS, 1.3, "qrexec/host/daemon.py: MAX_ANSWERS"),
    Row("calls of the guest's under way", outgoing.MAX_CALLS, 4300, "qrexec/host/outgoing.py: MAX_CALLS, MAX_PENDING, MAX_ENDED"),
    Row("characters of what they ask for", outgoing.MAX_WORDS, 2, "qrexec/host/outgoing.py: MAX_WORDS"),
    Row("callers of the guest's services", local_socket.MAX_CLIENTS, 900, "qrexec/host/local_socket.py: MAX_CLIENTS"),
    Row("entries of QubesDB", tree.MAX_ENTRIES, 250, "qdb/tree.py: MAX_ENTRIES"),
    Row("bytes of QubesDB", tree.MAX_BYTES, 1.2, "qdb/tree.py: MAX_BYTES"),
    Row("bytes of QubesDB for the guest", server.MAX_WAITING, 3.8, "qdb/server.py: MAX_WAITING, and one answer with everything"),
    Row("bytes of QEMU's monitor", monitor.MAX_LINE, 4, "hypervisor/qemu/monitor.py: MAX_LINE"),
    Row("events of QEMU's that somebody waits for", 4 * monitor.MAX_EVENTS, 3200, "hypervisor/qemu/monitor.py: MAX_EVENTS"),
    Row("bytes of the console that wait", console.KEPT, 3.7, "warden/console.py: KEPT"),
    Row("bytes of events that qubesd has not read", control.MAX_PEERS * control.MAX_UNREAD, 2.2, "warden/control.py: MAX_UNREAD"),
    Row("attached disks", len(PORTS), 400_000, "hypervisor/qemu/hotplug.py: PORTS; a thread and two buffers each"),
)


class Rate(NamedTuple):
    what: str
    burst: int
    rate: float                          # a second
    where: str


RATES: Final = (
    Rate("lines of QEMU's monitor", monitor.BURST, monitor.RATE, "hypervisor/qemu/monitor.py: more ends the qube"),
    Rate("agents, one after the other", rejoin.FREE, 1 / rejoin.EVERY, "warden/rejoin.py: Turns; the next one waits"),
    Rate("records of the qube's log", LOG_BURST, LOG_RATE, "runtime/say.py: Pace; more are counted, not written"),
)
