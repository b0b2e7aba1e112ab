"""Files copied between real qubes: a tree, a gibibyte, and a sender that means harm."""
from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import pytest
from tests.boot.place import Place
from tests.filecopy.support import file, folder, link

from cloison.wire import filecopy as wire

pytestmark = [pytest.mark.boot]

SOURCE, TARGET = "copy-from", "copy-to"
RULES = f"""\
qubes.Filecopy * {SOURCE} @default allow target={TARGET}
qubes.Filecopy * {SOURCE} {TARGET} allow
"""
INCOMING = f"QubesIncoming/{SOURCE}"
PATIENCE = 1800.0                        # seconds for a gibibyte under emulation on a busy machine
GIBIBYTE = 1 << 30
FLAT = 48 << 10                          # KiB that no process of the copy may exceed; Python itself takes 10 to 20 MiB
# Runs a command and says how much memory, in KiB, its greatest process had.
MEASURED = "import resource, subprocess, sys; s = subprocess.call(sys.argv[1:]); " \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(s)"


@pytest.fixture
def pair(cloison: Place) -> Iterator[Place]:
    """Two running qubes, of which one may copy to the other."""
    policy = cloison.root / "config/policy.d"
    policy.mkdir(parents=True, exist_ok=True)
    rules = policy / "25-copy.policy"
    rules.write_text(RULES)
    for name in (SOURCE, TARGET):
        cloison.create(name)
    cloison.ok(["qvm-start", SOURCE, TARGET])
    yield cloison
    for name in (SOURCE, TARGET):
        cloison.remove(name)
    rules.unlink()


LISTING = "find . -printf '%P %M %s %T@ %l\\n' | sort; find . -type f -exec sha256sum {} + | sort"


def test_a_tree_arrives_as_it_is_and_stays_unless_moved(pair: Place) -> None:
    pair.sh(SOURCE, "mkdir -p top/a/b; echo one > top/a/1; ln -s ../1 top/a/b/link; touch -d @1.5 'top/é 漢'; chmod 711 top/a/b")
    pair.sh(SOURCE, "mkdir empty; qvm-copy top empty")
    listed = pair.sh(SOURCE, f"cd top; {LISTING}")
    assert pair.sh(TARGET, f"cd {INCOMING}/top; {LISTING}") == listed
    again = pair.run(["qvm-run", "-p", SOURCE, "qvm-copy top"])
    assert (again.returncode, b"exists already" in again.stderr) == (errno.EEXIST, True)
    assert pair.sh(SOURCE, f"mv top moved; qvm-move-to-vm {TARGET} moved; ls") == b"empty\n"
    assert pair.sh(TARGET, f"cd {INCOMING}/moved; {LISTING}") == listed


def test_a_refused_copy_says_so_and_leaves_all_in_place(pair: Place) -> None:
    refused = pair.run(["qvm-run", "-p", SOURCE, "echo mine > f; qvm-move-to-vm dom0 f; echo $?; cat f"])
    assert (refused.stdout, b"Request refused" in refused.stderr) == (b"126\nmine\n", True)


def test_a_name_that_is_unsafe_to_show_asks_for_another_argument(pair: Place) -> None:
    result = pair.run(["qvm-run", "-p", SOURCE, "touch \"$(printf 'a\\033b')\"; qvm-copy a*"])
    assert result.returncode == 0
    assert b'"a\\x1bb" is not safe to show: asking for qubes.Filecopy+allow-all-names' in result.stderr
    assert pair.sh(TARGET, f"ls -b {INCOMING}") == b"a\\033b\n"


def test_files_of_the_host(pair: Place) -> None:
    (pair.root / "from-host").write_bytes(bytes(range(256)) * 1000)
    pair.ok(["qvm-copy-to-vm", TARGET, str(pair.root / "from-host")])
    assert pair.sh(TARGET, "cat QubesIncoming/dom0/from-host") == bytes(range(256)) * 1000
    again = pair.run(["qvm-move-to-vm", TARGET, str(pair.root / "from-host")])
    assert (again.returncode, b"exists already" in again.stderr) == (1, True)
    assert (pair.root / "from-host").exists()


HOSTILE = [
    (file(b"../.bashrc", b"evil"), errno.EILSEQ), (file(b"/home/user/.bashrc", b"evil"), errno.EILSEQ),
    (folder(b"d") + link(b"d/l", b"../../.."), errno.ENOLINK), (folder(b"e") + link(b"e/l", b"f") + file(b"e/l/x"), errno.ENOENT),
    (folder(b"g") + folder(b"g/h") + link(b"g/l", b"h") + file(b"g/l/x", b"evil"), errno.ELOOP),
    (wire.Entry(b"dev", 0o020666).encode(), errno.EINVAL),
    (wire.HEADER.pack(2**32 - 1, 0o100644, 0, 0, 0, 0, 0), errno.ENAMETOOLONG),
    (wire.Entry(b"huge", wire.REGULAR | 0o600, 2**62).encode() + b"x" * 10**6, wire.ENDED_EARLY),
    (file(b"setuid", b"x", 0o4755) + file(b"setuid"), errno.EEXIST),
]


def test_a_hostile_sender_gets_nothing_but_refusals(pair: Place) -> None:
    pair.sh(TARGET, "touch .before")
    for stream, code in HOSTILE:
        answer = pair.run(["qvm-run", "-p", SOURCE, f"exec qrexec-client-vm {TARGET} qubes.Filecopy"], stream).stdout
        result = wire.decode_result(answer, ended=True)
        # A link to nothing is refused as a link too: which error is the kernel's affair.
        assert result is not None and (result.code == code or {result.code, code} == {errno.ENOENT, errno.ELOOP})
    assert pair.sh(TARGET, f"find / -xdev -newer .before -path '*QubesIncoming*' -prune -o -newer .before -name '*evil*' -print; "
                           f"find {INCOMING} -name x -o -name huge -o -name dev") == b""


def patiently(place: Place, qube: str, command: str) -> tuple[bytes, bytes]:
    """Output and errors of a shell command that may take long and must succeed."""
    tool = place.popen(["qvm-run", "-p", qube, command])
    output, errors = tool.communicate(timeout=PATIENCE)
    assert tool.returncode == 0, errors
    return output, errors


@pytest.mark.slow
def test_a_gibibyte_arrives_bit_for_bit_with_flat_memory(pair: Place) -> None:
    pair.sh(SOURCE, "cat > measured.py", MEASURED.encode())
    patiently(pair, SOURCE, f"head -c {GIBIBYTE} /dev/urandom > big")
    memory, errors = patiently(pair, SOURCE, "python3 measured.py qvm-copy big")
    rate = re.search(rb"sent 1024\.0 of 1024\.0 MiB, ([0-9.]+) MiB/s", errors)
    assert rate is not None
    assert int(memory) < FLAT
    here, _ = patiently(pair, SOURCE, "sha256sum < big")
    there, _ = patiently(pair, TARGET, f"sha256sum < {INCOMING}/big")
    assert here == there
    print(f"1 GiB between two qubes: {rate[1].decode()} MiB/s, {int(memory) / 1024:.0f} MiB of memory")
