"""Order of modules, and the archive's content."""
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloison.templates import initramfs

DRIVERS = "kernel/drivers/virtio"
DEP = f"""\
{DRIVERS}/virtio.ko: {DRIVERS}/virtio_ring.ko
{DRIVERS}/virtio_ring.ko:
{DRIVERS}/virtio_pci.ko: {DRIVERS}/virtio_pci_modern_dev.ko {DRIVERS}/virtio.ko {DRIVERS}/virtio_ring.ko
{DRIVERS}/virtio_pci_modern_dev.ko:
kernel/drivers/block/virtio_blk.ko: {DRIVERS}/virtio.ko {DRIVERS}/virtio_ring.ko
kernel/fs/squashfs/squashfs.ko:
kernel/lib/lz-x.ko:
"""
BUILTIN = "kernel/fs/ext4/ext4.ko\n"


def names(paths: list[str]) -> list[str]:
    return [initramfs.module_name(path) for path in paths]


def test_dependencies_come_first_and_once() -> None:
    order = names(initramfs.load_order(DEP, BUILTIN))
    assert order == ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "squashfs"]


def test_dash_and_underscore_are_the_same() -> None:
    assert initramfs.load_order(DEP, "", ("lz_x",)) == ["kernel/lib/lz-x.ko"]


def test_built_in_module_is_not_loaded() -> None:
    assert initramfs.load_order(DEP, BUILTIN, ("ext4",)) == []


def test_missing_module_is_named() -> None:
    with pytest.raises(initramfs.MissingModule, match="no module ext4"):
        initramfs.load_order(DEP, "", ("ext4",))


def make_modules(folder: Path, suffix: str = ".ko") -> None:
    (folder / "modules.dep").write_text(DEP.replace(".ko", suffix))
    (folder / "modules.builtin").write_text(BUILTIN)
    for line in DEP.splitlines():
        path = folder / line.split(":")[0].replace(".ko", suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"module " + path.name.encode())


def test_archive_holds_what_init_needs(tmp_path: Path) -> None:
    make_modules(tmp_path)
    archive = initramfs.build(b"#busybox", str(tmp_path))
    assert archive == initramfs.build(b"#busybox", str(tmp_path))
    listed = subprocess.run(["cpio", "--list", "--quiet"], input=archive, capture_output=True, check=True).stdout
    assert listed.decode().split() == [
        "bin", "dev", "proc", "sys", "modules", "newroot", "bin/busybox", "init",
        "modules/00-virtio_ring.ko", "modules/01-virtio.ko",
        "modules/02-virtio_pci_modern_dev.ko", "modules/03-virtio_pci.ko", "modules/04-virtio_blk.ko", "modules/05-squashfs.ko",
    ]


def test_compressed_modules_are_refused(tmp_path: Path) -> None:
    make_modules(tmp_path, ".ko.xz")
    with pytest.raises(initramfs.MissingModule, match="compressed"):
        initramfs.build(b"", str(tmp_path))


def test_init_is_a_valid_script() -> None:
    script = Path(initramfs.__file__).with_name("init.sh")
    subprocess.run(["sh", "-n", str(script)], check=True)
