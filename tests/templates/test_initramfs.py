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


CRYPTO = "kernel/crypto"
BIG_DEP = DEP + f"""\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
{CRYPTO}/crc32c-intel.ko: {CRYPTO}/base.ko
{CRYPTO}/crc32c_generic.ko:
{CRYPTO}/base.ko:
{CRYPTO}/later.ko:
"""
SOFT = "# a comment\nsoftdep ext4 pre: crypto-crc32c nowhere post: later\nsoftdep jbd2\n"
ALIAS = "".join(f"alias {words}\n" for words in (
    "crypto-crc32c crc32c_intel", "crypto-crc32c crc32c-generic", "crypto-crc32c gone", "fs-ext4 ext4", "odd"))


def names(steps: list[initramfs.Step]) -> list[str]:
    return [initramfs.module_name(step.path) for step in steps]


def soft(steps: list[initramfs.Step]) -> set[str]:
    return {initramfs.module_name(step.path) for step in steps if not step.must}


def test_dependencies_come_first_and_once() -> None:
    order = initramfs.Modules(DEP, BUILTIN).order()
    assert names(order) == ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "squashfs"]
    assert soft(order) == set()


def test_dash_and_underscore_are_the_same() -> None:
    assert initramfs.Modules(DEP, "").order(("lz_x",)) == [initramfs.Step("kernel/lib/lz-x.ko", True)]


def test_built_in_module_is_not_loaded() -> None:
    assert initramfs.Modules(DEP, BUILTIN).order(("ext4",)) == []


def test_missing_module_is_named() -> None:
    with pytest.raises(initramfs.MissingModule, match="no module ext4"):
        initramfs.Modules(DEP, "").order(("ext4",))


def test_what_is_needed_softly_comes_too_by_each_module_of_that_name() -> None:
    order = initramfs.Modules(BIG_DEP, "", SOFT, ALIAS).order(("ext4",))
    assert names(order) == ["base", "crc32c_intel", "crc32c_generic", "jbd2", "ext4", "later"]
    assert soft(order) == {"base", "crc32c_intel", "crc32c_generic", "later"}      # any of them may be another processor's


def test_what_is_needed_for_sure_may_not_fail_though_something_needs_it_softly() -> None:
    order = initramfs.Modules(BIG_DEP, "", "softdep ext4 pre: jbd2\n").order(("ext4",))
    assert names(order) == ["jbd2", "ext4"]
    assert soft(order) == set()


@pytest.mark.parametrize("modinfo", [b"crc32c_generic.alias=crypto-crc32c\0odd\0", b"x=y\0crc32c_generic.alias=crypto-crc32c"])
def test_a_soft_need_that_is_built_in_needs_no_module(modinfo: bytes) -> None:
    order = initramfs.Modules(BIG_DEP, "", "softdep ext4 pre: crypto-crc32c\n", ALIAS, modinfo).order(("ext4",))
    assert names(order) == ["jbd2", "ext4"]


def test_soft_needs_of_what_is_built_in_count() -> None:
    order = initramfs.Modules(BIG_DEP, BUILTIN, "", ALIAS, b"ext4.softdep=pre: crypto-crc32c\0").order(("ext4",))
    assert soft(order) == {"base", "crc32c_intel", "crc32c_generic"}


def test_a_circle_of_soft_needs_ends() -> None:
    order = initramfs.Modules(BIG_DEP, "", "softdep ext4 pre: later\nsoftdep later pre: ext4\n").order(("ext4",))
    assert names(order) == ["later", "jbd2", "ext4"]


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


def test_a_soft_module_is_marked_for_init(tmp_path: Path) -> None:
    make_modules(tmp_path)
    (tmp_path / "modules.softdep").write_text("softdep squashfs pre: lz-x\n")
    archive = initramfs.build(b"", str(tmp_path))
    listed = subprocess.run(["cpio", "--list", "--quiet"], input=archive, capture_output=True, check=True).stdout
    assert listed.decode().split()[-2:] == ["modules/05-lz_x.soft.ko", "modules/06-squashfs.ko"]


@pytest.mark.parametrize(("fails", "status"), [("05-lz_x.soft.ko", 0), ("06-squashfs.ko", 1)])
def test_init_bears_a_soft_module_that_does_not_load(tmp_path: Path, fails: str, status: int) -> None:
    """The loop of init.sh itself, with an insmod of ours."""
    script = Path(initramfs.__file__).with_name("init.sh").read_text()
    loop = script[script.index("for module in /modules"):script.index("disk qubes-root")].replace("/modules/", f"{tmp_path}/")
    for name in ("00-virtio.ko", "05-lz_x.soft.ko", "06-squashfs.ko"):
        (tmp_path / name).write_bytes(b"")
    insmod = f"b=busybox; fail() {{ exit 1; }}; busybox() {{ [ \"${{2##*/}}\" != {fails} ]; }}\n"
    assert subprocess.run(["sh", "-c", insmod + loop], check=False).returncode == status


def test_compressed_modules_are_refused(tmp_path: Path) -> None:
    make_modules(tmp_path, ".ko.xz")
    with pytest.raises(initramfs.MissingModule, match="compressed"):
        initramfs.build(b"", str(tmp_path))


def test_init_is_a_valid_script() -> None:
    script = Path(initramfs.__file__).with_name("init.sh")
    subprocess.run(["sh", "-n", str(script)], check=True)
