"""Settings in, QEMU's command line out. Pure; its output is compared with golden files.

Every option that takes structure is given as JSON (`-device`, `-blockdev`, `-netdev`, `-object`), so that no `,`, `=` or `"` in
any value can end one option and begin another (lesson QSB-066). Disk files come through fd sets or under names that the box has
given them (handing.py); a disk's whole graph is stated, format by format, and nothing is ever probed.

The machine's shape (everything a warm image depends on) is `shape()`; backends (which file, which socket) are not part of it.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

ROLES = ("root", "private", "volatile", "modules")
SPARE_PORTS = 8
# What QEMU needs of the kernel's log when a boot fails: read back over QMP (`ringbuf-read`), never written to a host file.
CONSOLE_BYTES = 65536
UNDERSCORED = ("max_ports",)   # QEMU's one property here that is not spelled with dashes
BOOT_OPTIONS = (
    "root=/dev/vda ro console=ttyS0,115200n8 quiet loglevel=4 panic=-1 random.trust_cpu=on mitigations=auto "
    "systemd.show_status=false systemd.mask=systemd-random-seed.service fsck.mode=skip net.ifnames=0 audit=0 nowatchdog"
)

# With "enhanced rep movsb" the guest's kernel copies byte by byte, as TCG emulates it: a fifth of the speed (decision 0035).
# "Fast short rep movsb" goes with it: QEMU 10 has it, and Debian's 6.1 kernel hangs at boot with only one of the two.
EMULATED_CPU = "max,erms=off,fsrm=off"
GUI_REGION = 512              # MiB, plugged while it runs
# MiB: QEMU 7.2 has 720 of them idle, libraries and heaps of its threads; and each of up to 256 requests of a disk has a stack of 1,
# and up to 8 more where it is in several clusters: two disks under full load.
RESERVED = 6144
LEAST_CODE_CACHE, MOST_CODE_CACHE = 32, 512      # MiB
SERIAL_VECTORS = 7            # one for each queue and one for changes: with fewer, each interrupt looks at all queues


@dataclass(frozen=True)
class Node:
    """One file of a disk as QEMU sees it: an fd set's number or a path in the box, a stated format, read-only or not.

    `fd_secret`: of a pipe, for an encrypted qcow2: QEMU reads what opens it from there, once.
    """

    file: int | str
    format: str
    read_only: bool
    fd_secret: int | None = None


@dataclass(frozen=True)
class Drive:
    """A virtio disk. `nodes` bottom first; none at all is an empty disk of `size` bytes that forgets (`null-co`)."""

    role: str
    size: int
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Ram:
    """Guest memory: a descriptor's file. Shared while a warm image is made, private copy-on-write when one starts."""

    path: str | None = None
    shared: bool = False


@dataclass(frozen=True)
class Settings:
    """All that shapes one QEMU. `fd_*` are descriptor numbers that QEMU inherits."""

    name: str
    uuid: str
    memory: int                     # MiB
    vcpus: int
    accelerator: str                # kvm or tcg
    drives: tuple[Drive, ...]
    fd_monitor: int
    fd_channel: int
    ram: Ram = Ram()
    incoming: bool = False          # wait for a warm image's device state, to be named over QMP
    kernel: str | None = None       # paths inside the sandbox; None when state comes in
    initramfs: str | None = None
    kernelopts: str = ""
    program: str = "qemu-system-x86_64"
    code_cache: int = 0             # MiB for code that TCG has translated; 0: as much as QEMU likes. Nothing in a warm image


def command(settings: Settings) -> list[str]:
    """The whole argv. Raises ValueError for a disk role or an accelerator that does not exist."""
    return [
        settings.program, *_machine(settings), *_memory(settings), *_boot(settings),
        *_ports(), *_disks(settings.drives), *_channel(settings), *_devices(), *_sandbox(),
    ]


def shape(settings: Settings) -> list[str]:
    """What a warm image's device state depends on: the command line with every backend and name taken out."""
    bare = Settings(
        name="shape", uuid="00000000-0000-0000-0000-000000000000", memory=settings.memory, vcpus=settings.vcpus,
        accelerator=settings.accelerator, fd_monitor=0, fd_channel=0,
        drives=tuple(Drive(drive.role, 0 if drive.role == "root" else drive.size) for drive in settings.drives),
    )
    return command(bare)


def _option(option: str, /, **values: Any) -> list[str]:
    fields = {key if key in UNDERSCORED else key.replace("_", "-"): value for key, value in values.items()}
    return [f"-{option}", json.dumps(fields, separators=(",", ":"))]


def code_cache(memory: int) -> int:
    """MiB for the code that TCG keeps of a guest with so many MiB: with its memory, and 80 MiB of QEMU's own, it stays below
    `ceiling`. QEMU's default is up to 1 GiB, of which every program that starts takes 8 MB, on QEMU 7.2 (decision 44).
    """
    return min(max(memory // 4 + 20, LEAST_CODE_CACHE), MOST_CODE_CACHE)


def ceiling(memory: int) -> int:
    """MiB that a QEMU with so many MiB of guest memory stays below, whatever its guest does: said in README, point 3."""
    return memory + memory // 4 + 95           # 100 MB are 95 MiB


def addresses(memory: int) -> int:
    """MiB of addresses that such a QEMU may ever take: guest, cache, a GUI's region, and what is reserved and hardly used."""
    return memory + code_cache(memory) + GUI_REGION + RESERVED


def _machine(settings: Settings) -> list[str]:
    if settings.accelerator not in ("kvm", "tcg"):
        raise ValueError(f"no accelerator {settings.accelerator!r}")
    return [
        "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
        "-name", "cloison",   # the real name is on the warden; QEMU has no use for it
        "-uuid", settings.uuid,
        "-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,dump-guest-core=off,mem-merge=off,memory-backend=ram",
        "-accel", f"tcg,tb-size={settings.code_cache}" if settings.code_cache else settings.accelerator,
        "-cpu", "host,migratable=on" if settings.accelerator == "kvm" else EMULATED_CPU,
        "-smp", str(settings.vcpus),
        "-rtc", "base=utc,clock=host,driftfix=none",
    ]


def _memory(settings: Settings) -> list[str]:
    size = settings.memory * 1024 * 1024
    if settings.ram.path is None:
        backend = _option("object", qom_type="memory-backend-ram", id="ram", size=size, share=False, merge=False, dump=False)
    else:
        backend = _option("object", qom_type="memory-backend-file", id="ram", size=size, mem_path=settings.ram.path,
                          share=settings.ram.shared, merge=False, dump=False)
    return ["-m", f"{settings.memory}M", *backend]


def _boot(settings: Settings) -> list[str]:
    if settings.incoming:
        return ["-incoming", "defer"]
    if settings.kernel is None or settings.initramfs is None:
        return []
    options = f"{BOOT_OPTIONS} {settings.kernelopts}".strip()
    return ["-kernel", settings.kernel, "-initrd", settings.initramfs, "-append", options]


def _ports() -> list[str]:
    """Root ports that stay free: disks, links and the GUI region are plugged into them later."""
    argv: list[str] = []
    for index in range(SPARE_PORTS):
        argv += _option("device", driver="pcie-root-port", id=f"port{index}", bus="pcie.0", chassis=index + 1,
                        addr=f"{0x10 + index // 8:x}.{index % 8}", multifunction=index % 8 == 0,
                        **({"pref64_reserve": 512 * 1024 * 1024} if index == 0 else {}))
    return argv


def _disks(drives: tuple[Drive, ...]) -> list[str]:
    """A full host disk stops the machine (warden/space.py); other faults are the guest's to see."""
    argv: list[str] = []
    for number, drive in enumerate(drives):
        if drive.role not in ROLES:
            raise ValueError(f"no disk role {drive.role!r}")
        argv += _graph(drive)
        argv += _option("device", driver="virtio-blk-pci", id=f"disk-{drive.role}", drive=drive.role, serial=f"qubes-{drive.role}",
                        bus="pcie.0", addr=f"{2 + number:x}.0", disable_legacy="on", num_queues=1, write_cache="on",
                        werror="enospc", rerror="report")
    return argv


def _graph(drive: Drive) -> list[str]:
    """-blockdev options for one disk, bottom first; the uppermost node is called like the role."""
    if not drive.nodes:
        return _option("blockdev", driver="null-co", node_name=drive.role, size=drive.size, read_zeroes=True)
    argv: list[str] = []
    last = len(drive.nodes) - 1
    for level, node in enumerate(drive.nodes):
        name = drive.role if level == last else f"{drive.role}-{level}"
        path = node.file if isinstance(node.file, str) else f"/dev/fdset/{node.file}"
        argv += _option("blockdev", driver="file", node_name=f"{name}-file", filename=path,
                        read_only=node.read_only, auto_read_only=False, locking="off", discard="unmap",
                        cache={"direct": False, "no-flush": False})
        fields: dict[str, Any] = {"driver": node.format, "node_name": name, "file": f"{name}-file", "read_only": node.read_only,
                                  "discard": "unmap"}
        if node.format == "qcow2":
            fields["backing"] = f"{drive.role}-{level - 1}" if level else None
        if node.fd_secret is not None:
            argv += _option("object", qom_type="secret", id=f"{name}-secret", file=f"/proc/self/fd/{node.fd_secret}")
            fields["encrypt"] = {"format": "luks", "key-secret": f"{name}-secret"}
        argv += _option("blockdev", **fields)
    return argv


def _channel(settings: Settings) -> list[str]:
    return [
        *_chardev("monitor", settings.fd_monitor), "-mon", "chardev=monitor,mode=control",
        *_option("device", driver="virtio-serial-pci", id="serial", bus="pcie.0", addr="8.0", disable_legacy="on", max_ports=2,
                  vectors=SERIAL_VECTORS),
        *_chardev("mux", settings.fd_channel),
        *_option("device", driver="virtserialport", id="mux-port", bus="serial.0", nr=1, chardev="mux", name="org.cloison.mux"),
        "-chardev", f"ringbuf,id=console,size={CONSOLE_BYTES}",
        *_option("device", driver="isa-serial", id="console-port", chardev="console"),
    ]


def _chardev(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd}"]


def _devices() -> list[str]:
    return [
        *_option("object", qom_type="rng-random", id="entropy", filename="/dev/urandom"),
        *_option("device", driver="virtio-rng-pci", id="rng", rng="entropy", bus="pcie.0", addr="9.0", disable_legacy="on"),
        "-netdev", "hubport,id=net0,hubid=0",
        *_option("device", driver="virtio-net-pci", id="nic0", netdev="net0", mac="00:16:3e:5e:6c:00", bus="pcie.0", addr="a.0",
                 disable_legacy="on", romfile=""),
    ]


def _sandbox() -> list[str]:
    """Every denial QEMU has: no fork, no new privileges, no priority games, no obsolete calls."""
    return ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
