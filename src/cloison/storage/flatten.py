"""Merging a chain of images into one raw file, by qemu-img inside a sandbox.

The one place in the host where the insides of a disk image are read. What is parsed is qcow2 metadata, which our own
QEMU wrote while a guest controlled the data; the data itself is copied, never looked at. A guest that broke out of its
QEMU could also have written the metadata, so qemu-img runs without network, without any file but the images
(read-only) and the output, with no privilege and under QEMU's filter of system calls (runtime/seccomp.py). Formats and
backing are given explicitly; nothing is probed. The
output is raw: whatever the metadata was, it does not get further.

Run by root, it is root's own user on the host, unlike each QEMU, though without any capability. Another user could not open the
images: they and the folders above them are root's alone, commits are shared and never change owner, and qemu-img takes no open
descriptor in a file's place. So what holds is the box: of all that is root's, its mounts show these images (read-only), the output
and /usr (read-only), and it has no process but its own to send a signal to.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence

from cloison.runtime import seccomp
from cloison.storage.base import PoolError
from cloison.wire.warden import Layer

_SEARCH = os.pathsep.join((os.defpath, "/usr/local/bin", "/usr/sbin", "/sbin"))
_SANDBOX = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv", "--chdir", "/")
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")


def program(name: str, package: str) -> str:
    """Path of a program of the host, also where an ordinary user's PATH does not look. Raises PoolError."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), _SEARCH)))
    if path is None:
        raise PoolError(f"can't run {name}", "it is not installed", f"Install the package {package}.")
    return path


def graph(layers: Sequence[Layer]) -> dict[str, object]:
    """Block graph of a chain, bottom first, with every format and backing explicit (`-blockdev` in one nested object)."""
    node: dict[str, object] | None = None
    for layer in layers:
        above: dict[str, object] = {"driver": layer.format, "file": {"driver": "file", "filename": layer.path}}
        if layer.format == "qcow2":
            above["backing"] = node
        node = above
    if node is None:
        raise ValueError("a chain needs a layer")
    return node


def flatten(layers: Sequence[Layer], output: str) -> None:
    """Write what the chain shows (bottom first) to a new sparse raw file of as many bytes. It is durable when this returns.

    `output` must be an empty file whose length is at least the size of the uppermost image. Raises PoolError, OSError.
    """
    inside = [Layer(f"/layers/{number}", layer.format) for number, layer in enumerate(layers)]
    argv = [program("bwrap", "bubblewrap"), *_SANDBOX]
    for folder in _SYSTEM:
        argv += ["--ro-bind-try", folder, folder]
    for layer, shown in zip(layers, inside, strict=True):
        argv += ["--ro-bind", layer.path, shown.path]
    filter_fd = seccomp.pipe()
    argv += ["--seccomp", str(filter_fd), "--bind", output, "/output", "--", program("qemu-img", "qemu-utils")]
    argv += ["convert", "-n", "--target-is-zero", "-O", "raw", "json:" + json.dumps(graph(inside)), "/output"]
    try:
        run(argv, "can't merge the images of a volume", [filter_fd])
    finally:
        os.close(filter_fd)
    fd = os.open(output, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def run(argv: list[str], what: str, handed: Sequence[int] = ()) -> None:
    """Run a program to its end, with these descriptors. Raises PoolError with the end of what it complained about."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                          pass_fds=handed)
    if done.returncode:
        untrusted = done.stderr[-300:].decode("ascii", "replace").strip().splitlines()
        said = "".join(c for c in untrusted[-1] if c.isprintable()) if untrusted else f"status {done.returncode}"
        raise PoolError(what, said, "Check free space and the host's kernel log; nothing was changed.")
