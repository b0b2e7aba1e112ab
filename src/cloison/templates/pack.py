"""Turns a Debian tree into an ext4 image: `python -m cloison.templates.pack TREE IMAGE SIZE SOURCES OFFERS`.

Run inside the namespace where the tree's owners have their real numbers (see `contain`). Nothing is mounted: mke2fs
reads the tree itself. Everything that is the build host's or would be shared by all qubes is taken out first.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from cloison.templates import offers

# metadata_csum and 64bit are known to every kernel since 4.x; orphan_file is not known to older repair tools.
FEATURES = "64bit,metadata_csum,^orphan_file"
_CLEARED = ("etc/resolv.conf", "etc/machine-id")
_WRITTEN = {
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/fstab": "# The host's initramfs mounts the root; the agent mounts the qube's own disks.\n",
}
_EMPTIED = ("var/lib/apt/lists", "var/cache/apt", "var/log", "dev", "tmp", "run")
_MADE = ("etc/ssh", "var/lib/systemd")
_KEYS = "ssh_host_"


def finish(tree: str, sources: str) -> None:
    """Make the tree nobody's in particular: no host's name, no id, no key, no log, no seed. `sources`: apt's sources.list."""
    for name in _CLEARED:
        _write(tree, name, "")
    for name, text in _WRITTEN.items():
        _write(tree, name, text)
    apt = os.path.join(tree, "etc", "apt")
    shutil.rmtree(os.path.join(apt, "sources.list.d"), ignore_errors=True)
    os.makedirs(os.path.join(apt, "sources.list.d"))
    _write(tree, "etc/apt/sources.list", sources)
    for name in _EMPTIED:
        _empty(os.path.join(tree, name))
    for folder, prefix in ((_MADE[0], _KEYS), (_MADE[1], "random-seed")):
        path = os.path.join(tree, folder)
        for name in os.listdir(path) if os.path.isdir(path) else []:
            if name.startswith(prefix):
                os.unlink(os.path.join(path, name))


def make_image(tree: str, image: str, size: int) -> None:
    """A sparse raw image of `size` bytes, on disk when this returns. Raises CalledProcessError."""
    with open(image, "xb") as file:
        file.truncate(size)
    # The file is all zero, so mke2fs may take the tables for written: the image stays small, and no guest zeroes them later.
    options = ["-q", "-t", "ext4", "-O", FEATURES, "-m", "0", "-E", "assume_storage_prezeroed=1"]
    subprocess.run(["mke2fs", *options, "-d", tree, image], check=True)
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(tree: str, name: str, text: str) -> None:
    """Never through a link of the tree's, which would lead to the host's own file."""
    path = os.path.join(tree, name)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o644)


def _empty(folder: str) -> None:
    """Remove files, keep folders that packages made (some services need theirs in /var/log)."""
    keep_folders = os.path.basename(folder) == "log"
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in names:
            os.unlink(os.path.join(parent, name))
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                os.unlink(path)
            elif not keep_folders:
                os.rmdir(path)


def main(argv: list[str]) -> int:
    tree, image, size, sources, said = argv
    with open(sources, encoding="utf-8") as file:
        finish(tree, file.read())
    with open(said, "x", encoding="ascii") as file:
        json.dump(offers.of_tree(tree), file)
    make_image(tree, image, int(size))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
