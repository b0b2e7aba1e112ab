"""Becoming a qube: what a guest does between the host's word and the first byte of the user's.

The same steps after a boot and after a restored snapshot. The order is the point: two guests restored from one snapshot
have the same random generator until `reseed`, so that comes before anything that could draw from it; names and ids next;
then the volumes; QubesDB last, because what watches it may act on it. No process is started: under emulation each costs tens of
milliseconds, and this is on every start's path.
"""
from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import time

from cloison.guest import libc, private_volume, volumes
from cloison.qrexec import process
from cloison.wire.agent import Identity
from cloison.wire.qrexec import Command

RUN = "/run/cloison"
JOURNAL = "/run/log/journal"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
PRODUCT_UUID = "/sys/devices/virtual/dmi/id/product_uuid"
LINK = "eth0"                        # net.ifnames=0
SET_ADDRESS, ETHER = 0x8924, 1       # SIOCSIFHWADDR, ARPHRD_ETHER
USUAL_ADDRESS = "00:16:3e:5e:6c:00"  # what all qubes have that nobody has given another
MIN_ENTROPY = 32                     # bytes
CLOCK_TOLERANCE = 5_000_000
LOCALTIME = "/etc/localtime"
NOBODY = "0" * 32
USERS = ("root", "user")             # whom calls run programs as, as a rule
# Services that are on unless the host says otherwise, by the kind of qube.
_APP = ("qubes-update-check", "meminfo-writer", "tracker", "evolution-data-server", "software-rendering")
SERVICES = {
    "NetVM": ("network-manager", "qubes-network", "qubes-update-check", "qubes-updates-proxy", "meminfo-writer", "qubes-firewall",
              "software-rendering"),
    "ProxyVM": ("qubes-network", "qubes-firewall", "qubes-update-check", "meminfo-writer", "software-rendering"),
    "AppVM": _APP, "DispVM": _APP, "TemplateVM": (*_APP, "updates-proxy-setup"),
}
DEFAULT_UID = 1000                   # of `user`
NIL_UUID = "00000000-0000-0000-0000-000000000000"


def become(identity: Identity) -> list[str]:
    """Be this qube; what is wrong with its private volume. Raises OSError or ValueError; the qube must not run then."""
    entropy = bytes.fromhex(identity.entropy)
    if len(entropy) < MIN_ENTROPY:
        raise ValueError("the host gave no entropy: this guest would be as predictable as all others of its snapshot")
    libc.reseed(entropy)
    set_clock(identity.time)
    if not _ready:
        _get_ready()
    _write("/etc/machine-id", identity.machine_id + "\n")
    _write(f"{RUN}/boot_id", identity.boot_id + "\n")
    _write(f"{RUN}/product_uuid", product_uuid(identity.machine_id) + "\n")
    set_link_address(link_address(identity.qubesdb.get("/qubes-mac", ""), identity.boot_id))
    _names(identity.qubesdb.get("/name", "qube"))
    _timezone(identity.qubesdb.get("/qubes-timezone", ""))
    persistence = identity.qubesdb.get("/qubes-vm-persistence", "rw-only")
    _markers(identity.qubesdb, persistence)
    if volumes.can_wait(persistence, blank=identity.private_blank):
        return []
    return private_volume.mount(persistence, identity.private_size, identity.qubesdb)


def set_clock(now: int) -> None:
    """Nanoseconds since the epoch; a small difference is left alone, so that a clock that runs well never jumps."""
    if abs(time.time_ns() - now) > CLOCK_TOLERANCE:
        time.clock_settime_ns(time.CLOCK_REALTIME, now)


def product_uuid(machine_id: str) -> str:
    """What the machine's firmware calls it, as user space reads it: the qube's own, at each start the same."""
    digits = machine_id[16:] + machine_id[:16]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def link_address(said: str, boot_id: str) -> str:
    """The network interface's: the one that somebody has given this qube, or one for this start (locally administered)."""
    if said and said != USUAL_ADDRESS:
        return said
    return ":".join(("02", *(boot_id[at:at + 2] for at in (0, 2, 4, 6, 9))))


def set_link_address(address: str) -> None:
    """Before the link is up, which it isn't yet. Without such a link there is nothing to do."""
    request = struct.pack("16sH6s8x", LINK.encode(), ETHER, bytes.fromhex(address.replace(":", "")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, SET_ADDRESS, request)
        except OSError as error:
            print(f"the address of {LINK} stays the usual one: {error}", file=sys.stderr)


def rehearse() -> None:
    """Before a snapshot: do with nobody's names what `become` will do, so that its files and programs are in memory.

    A clone then writes to pages it has instead of reading the disk first. Nothing of this is a secret or a user's: the ids
    are zeros, and the program prints nothing.
    """
    _get_ready()
    _in_memory("/etc/machine-id", "/etc/hostname", "/etc/hosts")
    _localtime_in_memory()
    _write("/etc/machine-id", NOBODY + "\n")
    _names("qube")
    volumes.find_devices()
    os.makedirs("/rw", exist_ok=True)
    process.find_user("user")
    for user in USERS:
        for _ in range(2):
            started = process.start(Command(user, command="true"))
            assert isinstance(started, process.Started)
            started.process.wait()
            started.close()
    libc.sync()


_ready: list[str] = []        # lines of /etc/hosts that are the same for every qube, once _get_ready has run


def _get_ready() -> None:
    """What is the same for whoever this guest becomes; a snapshot has it behind it. User space sees a boot id of our own:
    the kernel drew its before the snapshot, and read the machine's.
    """
    os.makedirs(RUN, exist_ok=True)
    for folder in ("/run/qubes", "/run/qubes-service"):
        os.makedirs(folder, exist_ok=True)
    _write(f"{RUN}/boot_id", NIL_UUID + "\n")
    libc.mount(f"{RUN}/boot_id", BOOT_ID, flags=libc.MS_BIND)
    _write(f"{RUN}/product_uuid", NIL_UUID + "\n")
    os.chmod(f"{RUN}/product_uuid", 0o400)
    if os.path.exists(PRODUCT_UUID):
        libc.mount(f"{RUN}/product_uuid", PRODUCT_UUID, flags=libc.MS_BIND)
    volumes.grow_root()
    _read_hosts()


def _read_hosts() -> None:
    with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
        _ready[:] = [line for line in file if not line.startswith("127.0.1.1")] or ["127.0.0.1\tlocalhost\n"]


def _localtime_in_memory() -> None:
    """/etc/localtime leads through a link in memory, which each clone points where its host says."""
    if os.path.islink(LOCALTIME):
        os.symlink(os.readlink(LOCALTIME), f"{RUN}/localtime")
        os.symlink(f"{RUN}/localtime", f"{LOCALTIME}.new")
        os.rename(f"{LOCALTIME}.new", LOCALTIME)


def _in_memory(*paths: str) -> None:
    """Lay files of the memory file system over these: what differs in every clone is then written without touching its disk."""
    for path in paths:
        copy = f"{RUN}/{os.path.basename(path)}"
        volumes.copy_tree(path, copy)
        libc.mount(copy, path, flags=libc.MS_BIND)


def _write(path: str, text: str) -> None:
    """Without emptying the file first: ext4 would take that for a replacement and start writing to the disk at the close."""
    data = text.encode("ascii", "replace")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, data)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def link_journal(machine_id: str) -> None:
    """journald writes on under the id that this guest booted with; journalctl looks under its own. No restart: it costs memory."""
    try:
        folders = [name for name in os.listdir(JOURNAL) if len(name) == len(machine_id) and not os.path.islink(f"{JOURNAL}/{name}")]
        if folders and not os.path.lexists(f"{JOURNAL}/{machine_id}"):
            os.symlink(folders[0], f"{JOURNAL}/{machine_id}")
    except OSError as error:
        print(f"journalctl will find nothing: {error}", file=sys.stderr)


def _names(name: str) -> None:
    socket.sethostname(name)
    _write("/etc/hostname", name + "\n")
    _write("/etc/hosts", "".join(_ready) + f"127.0.1.1\t{name}\n")


def _timezone(zone: str) -> None:
    """Point /etc/localtime at the zone, if this system knows it."""
    target = os.path.normpath(f"/usr/share/zoneinfo/{zone}")
    if not zone or not target.startswith("/usr/share/zoneinfo/") or not os.path.isfile(target):
        return
    link = f"{RUN}/localtime" if os.path.lexists(f"{RUN}/localtime") else LOCALTIME
    if os.path.lexists(link):
        if os.path.islink(link) and os.readlink(link) == target:
            return
        os.unlink(link)
    os.symlink(target, link)


def _markers(qubesdb: dict[str, str], persistence: str) -> None:
    """Files that scripts look at: what kind of qube this is, which services are on."""
    kind = qubesdb.get("/qubes-vm-type", "AppVM")
    for name in (f"/run/qubes/this-is-{kind.lower()}", f"/run/qubes/persistent-{persistence}"):
        _write(name, "")
    on = dict.fromkeys(SERVICES.get(kind, ()), "1")
    for path, value in qubesdb.items():
        head, _, service = path.rpartition("/")
        if head == "/qubes-service":
            on[service] = value
    for service, value in on.items():
        if value == "1":
            _write(f"/run/qubes-service/{service}", "")
