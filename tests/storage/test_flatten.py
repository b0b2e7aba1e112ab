"""Merging chains: right content, in a sandbox, and no other reader of disk images in the host."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contracts.pool import MIB, qemu_io
from tests.storage import walk

from cloison.storage.base import PoolError
from cloison.storage.flatten import flatten, graph, program
from cloison.storage.images import sparse_file
from cloison.storage.qcow2_image import create_overlay
from cloison.wire.warden import Layer


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Layer, ...]:
    (tmp_path / "base").write_bytes(b"\x01" * MIB)
    names = (("base", "raw"), ('odd "name",=\n', "qcow2"), ("top", "qcow2"))
    layers = tuple(Layer(str(tmp_path / name), format) for name, format in names)
    for layer in layers[1:]:
        create_overlay(layer.path, 2 * MIB)
    qemu_io(layers[:2], "write -P 2 64k 64k", "write -z 128k 64k")
    qemu_io(layers, "write -P 3 192k 64k", "write -P 4 1536k 64k")
    return layers


def test_a_chain_becomes_one_sparse_raw_file(chain: tuple[Layer, ...], tmp_path: Path) -> None:
    before = [Path(layer.path).read_bytes() for layer in chain]
    output = tmp_path / "output"
    sparse_file(str(output), 3 * MIB)
    flatten(chain, str(output))
    expected = bytearray(b"\x01" * MIB + bytes(2 * MIB))
    for pattern, offset in ((2, 64), (0, 128), (3, 192), (4, 1536)):
        expected[offset << 10:(offset + 64) << 10] = bytes([pattern]) * 65536
    assert output.read_bytes() == expected
    assert output.stat().st_blocks * 512 < 2 * MIB
    assert [Path(layer.path).read_bytes() for layer in chain] == before


def test_the_graph_states_every_format_and_backing() -> None:
    layers = (Layer("/a", "qcow2"), Layer("/b", "qcow2"))
    assert graph(layers) == {
        "driver": "qcow2", "file": {"driver": "file", "filename": "/b"},
        "backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "/a"}, "backing": None},
    }
    with pytest.raises(ValueError, match="needs a layer"):
        graph(())


def test_the_sandbox_hides_what_an_image_names(tmp_path: Path) -> None:
    """A data file in the header is opened by QEMU without being asked for: in the sandbox it does not exist."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * MIB)
    evil = tmp_path / "evil"
    options = f"data_file={secret},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(evil), "1M"], check=True)
    output = tmp_path / "output"
    sparse_file(str(output), MIB)
    with pytest.raises(PoolError, match="can't merge") as caught:
        flatten((Layer(str(evil), "qcow2"),), str(output))
    assert caught.value.hint
    assert b"S" not in output.read_bytes()


def test_a_missing_program_is_named() -> None:
    with pytest.raises(PoolError, match="can't run no-such-program: it is not installed") as caught:
        program("no-such-program", "some-package")
    assert "some-package" in caught.value.hint


AUDITED = """
import json, os, sys
def audit(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].endswith((".raw", ".qcow2")):
        frame = sys._getframe(1)
        while not ("/cloison/" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("/walk.py")):
            frame = frame.f_back    # past the standard library
        print(json.dumps(["open", os.path.basename(frame.f_code.co_filename), frame.f_code.co_name]))
    if event == "subprocess.Popen":
        print(json.dumps(["run", *args[1]]))
sys.addaudithook(audit)

sys.path.insert(0, WALK)
import walk
from cloison.storage.qcow2 import Qcow2Pool
pool = Qcow2Pool("qcow2", sys.argv[2])
if sys.argv[1] == "prepare":
    walk.prepare(pool)
else:
    walk.OPERATIONS[sys.argv[1]](pool)
"""


def test_nobody_but_the_sandboxed_qemu_img_reads_disks(tmp_path: Path) -> None:
    """QSB-020, QSB-078: every program that is run and every image that is opened, over a whole life of volumes.

    What of ours opens images: `images.opened` (headers of qcow2 images, fsync), the writers of new ones, the fsync of a merged
    one; who asks the kernel whether somebody has an image open; and who fills in an import.
    """
    ours = {
        ("images.py", "opened"), ("images.py", "created"), ("qcow2_image.py", "create_overlay"), ("flatten.py", "flatten"),
        ("walk.py", "_import_end"), ("holders.py", "is_open"),
    }
    script = AUDITED.replace("WALK", repr(str(Path(walk.__file__).parent)))
    events = []
    for operation in ("prepare", "create", "stop", "clear", "import_end", "clone", "revert", "export", "resize", "remove"):
        argv = [sys.executable, "-c", script, operation, str(tmp_path / "pool")]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        events += [json.loads(line) for line in done.stdout.splitlines()]
    opens = {tuple(event[1:]) for event in events if event[0] == "open"}
    assert opens <= ours
    programs = [event[1:] for event in events if event[0] == "run"]
    assert programs
    for argv in programs:
        if argv[0] == "qemu-io":
            continue                     # the test itself, in the place of a machine that writes
        if argv[0].endswith("/mke2fs"):
            assert "/.blank/" in argv[-1]
        else:
            assert argv[0].endswith("/bwrap") and {"--unshare-all", "--seccomp"} <= set(argv)
            inner = argv[argv.index("--") + 1:]
            assert inner[0].endswith("/qemu-img") and inner[1] == "convert" and inner[-2].startswith("json:")
