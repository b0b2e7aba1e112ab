"""A guest whose root floods its host: warden and QEMU stay below what README says, and who sends events without end ends."""
from __future__ import annotations

from pathlib import Path

import pytest
from tests.boot.place import Place, await_ends
from tests.boot.test_hostile import peak

from cloison.hypervisor.qemu import monitor
from cloison.hypervisor.qemu.argv import ceiling
from cloison.runtime.memory import used_by
from cloison.warden import bounds

pytestmark = [pytest.mark.boot, pytest.mark.slow]

# q35's CPU hot-plug device: select CPU 0, which also leaves the legacy mode, then command 2; each write of its data is an event.
# Debian has no /dev/port: root asks for the right to use ports itself, and `out` is four instructions.
EVENTS = r"""
import ctypes, mmap, sys
assert ctypes.CDLL(None).iopl(3) == 0
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b'\x89\xfa\x89\xf0\xee\xc3')
out = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
out(0x0cd8, 0)
out(0x0cdd, 2)
for _ in range(int(sys.argv[1])):
    out(0x0ce0, 0)
print('sent')
"""
PROGRAMS = "i=0; while [ $i -lt 120 ]; do /bin/true; i=$((i+1)); done; echo done"       # QEMU 7.2 keeps 8 MB of code for each


def test_events_and_programs_without_end_stay_below_the_ceilings(cloison: Place) -> None:
    if "flood" not in cloison.qubes():
        cloison.create("flood")
    cloison.ok(["qvm-start", "flood"])
    warden = cloison.process("warden flood")
    memory = int(cloison.ok(["qvm-prefs", "flood", "memory"]))
    cloison.sh("flood", "cat > /run/events.py", EVENTS.encode(), user="root")
    assert cloison.sh("flood", f"python3 /run/events.py {monitor.BURST // 2}", user="root") == b"sent\n"
    assert peak(warden) * 1024 < bounds.CEILING
    assert cloison.sh("flood", PROGRAMS) == b"done\n"
    machine = int(Path(f"/proc/{warden}/task/{warden}/children").read_text().split()[0])
    assert 50 << 20 < used_by(machine) < ceiling(memory) << 20
    assert cloison.sh("flood", "echo answers") == b"answers\n"
    assert b"flood: running" in cloison.ok(["cloison", "log", "flood"])
    ended = cloison.run(["qvm-run", "-p", "--user", "root", "flood", "python3 /run/events.py 10000000"])
    assert ended.returncode != 0
    await_ends({warden})
    assert b"more than anybody had asked for" in cloison.ok(["cloison", "log", "flood"])
