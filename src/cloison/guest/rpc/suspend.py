"""qubes.SuspendPre and qubes.SuspendPost: a qube lets go of its real PCI devices before the machine sleeps, and takes them back."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

RECORD = "/run/qubes/suspended-devices"
DEVICES = "/sys/bus/pci/devices"
_EMULATED = ("0x1af4", "0x5853")         # subsystem vendors of what QEMU and Xen make up
_GRAPHICS = ("0x8086", "0x030000")       # Intel's, whose driver must stay


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(4096).strip()


def real_devices() -> list[tuple[str, str]]:
    """Address and driver's folder of each real device that has a driver."""
    found = []
    for name in sorted(os.listdir(DEVICES)):
        place = os.path.join(DEVICES, name)
        kind = (_read(f"{place}/vendor"), _read(f"{place}/class"))
        if _read(f"{place}/subsystem_vendor") not in _EMULATED and kind != _GRAPHICS and os.path.exists(f"{place}/driver"):
            found.append((name, os.path.realpath(f"{place}/driver")))
    return found


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return True
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return False


def main_pre(argv: Sequence[str]) -> int:
    """qubes.SuspendPre; root only."""
    devices = real_devices()
    for name in sorted(os.listdir("/sys/class/net")):
        place = os.path.realpath(f"/sys/class/net/{name}/device")
        if any(address in place for address, _ in devices):
            subprocess.run(["ip", "link", "set", "dev", name, "down"], check=False)
    if not _write(RECORD, "".join(f"{address} {driver}\n" for address, driver in devices)):
        return 1
    return 0 if all([_write(f"{driver}/unbind", address) for address, driver in devices]) else 1


def main_post(argv: Sequence[str]) -> int:
    """qubes.SuspendPost; root only."""
    try:
        pairs = [line.split(" ", 1) for line in _read(RECORD).splitlines()]
    except FileNotFoundError:
        return 0
    done = all([_write(f"{driver}/bind", address) for address, driver in pairs])
    os.unlink(RECORD)
    return 0 if done else 1
