"""Our initramfs: busybox, the few kernel modules without which there is no root disk, and `init.sh`.

Uncompressed on purpose: it is about 3 MB, QEMU hands it over by DMA, and under emulation unpacking would cost more than
reading it. Deterministic, so that a change of recipe shows as a change of bytes.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from cloison.errors import HostError
from cloison.templates import cpio

# What /init needs: the disks and the two file systems (ext4 is built into Debian's cloud kernels; a kernel that has one of
# these built in lists it in modules.builtin). What they need softly counts as well: ext4 asks for "crc32c" only when it mounts,
# and nothing could load it by then.
NEEDED = ("virtio_pci", "virtio_blk", "ext4", "squashfs")
_FOLDERS = ("bin", "dev", "proc", "sys", "modules", "newroot")


class MissingModule(HostError):
    """A kernel package lacks a module that the guest can't boot without."""

    hint = "Use a kernel package of Debian (linux-image-cloud-amd64 or linux-image-amd64)."


def module_name(path: str) -> str:
    """`kernel/fs/ext4/ext4.ko.xz` and `ext4` are the same module; `-` and `_` are too."""
    return _name(PurePosixPath(path).name.split(".ko", 1)[0])


def _name(text: str) -> str:
    return text.replace("-", "_")


@dataclass(frozen=True)
class Step:
    """A module to load. `must`: without it the guest can't boot; the others may find that this processor is not theirs."""

    path: str
    must: bool


class Modules:
    """What depmod and the kernel's build say of a kernel's modules: dependencies, soft ones, aliases, what is built in."""

    def __init__(self, dep: str, builtin: str, softdep: str = "", alias: str = "", modinfo: bytes = b"") -> None:
        self._needs = {path: needs.split() for path, colon, needs in (line.partition(":") for line in dep.splitlines()) if colon}
        self._by_name = {module_name(path): path for path in self._needs}
        self._builtin = {module_name(path) for path in builtin.split()}
        self._aliases: dict[str, list[str]] = {}
        for words in (line.split() for line in alias.splitlines()):
            if len(words) == 3 and words[0] == "alias":
                self._aliases.setdefault(_name(words[1]), []).append(_name(words[2]))
        self._soft: dict[str, list[tuple[str, bool]]] = {}
        for words in (line.split() for line in softdep.splitlines()):
            if len(words) > 2 and words[0] == "softdep":
                self._add_soft(words[1], words[2:])
        for entry in modinfo.decode("utf-8", "replace").split("\0"):     # of what is built in: `ext4.softdep=pre: crc32c`
            key, _, value = entry.partition("=")
            module, _, field = key.partition(".")
            if field == "alias":
                self._builtin.add(_name(value))
            elif field == "softdep":
                self._add_soft(module, value.split())

    def _add_soft(self, module: str, words: list[str]) -> None:
        """`pre: a b post: c`."""
        before = True
        for word in words:
            if word in ("pre:", "post:"):
                before = word == "pre:"
            else:
                self._soft.setdefault(_name(module), []).append((_name(word), before))

    def order(self, wanted: tuple[str, ...] = NEEDED) -> list[Step]:
        """What to load for these, each after all it depends on, none twice. Raises MissingModule."""
        steps: dict[str, Step] = {}
        for name in wanted:
            if name not in self._builtin and name not in self._by_name:
                raise MissingModule(f"the kernel package has no module {name}")
            self._load(name, True, steps, set())
        return list(steps.values())

    def _load(self, name: str, must: bool, steps: dict[str, Step], within: set[str]) -> None:
        """`within`: what waits for this one; a circle of soft dependencies ends there."""
        if name in within:
            return
        within = {*within, name}
        soft = self._soft.get(name, [])
        for other in (other for other, before in soft if before):
            self._load_soft(other, steps, within)
        path = self._by_name.get(name)
        if path is not None and name not in self._builtin:
            for needed in reversed(self._needs[path]):           # depmod lists every dependency, the deepest last
                self._load(module_name(needed), must, steps, within)
            if path not in steps or (must and not steps[path].must):
                steps[path] = Step(path, must)                   # in its old place, if it has one
        for other in (other for other, before in soft if not before):
            self._load_soft(other, steps, within)

    def _load_soft(self, name: str, steps: dict[str, Step], within: set[str]) -> None:
        """A module's name or another one that modules go by; what is nowhere is left out, as modprobe does."""
        if name in self._builtin:
            return
        for module in [name] if name in self._by_name else self._aliases.get(name, []):
            if module in self._by_name:
                self._load(module, False, steps, within)


def build(busybox: bytes, modules: str) -> bytes:
    """The archive for one kernel. `modules`: the folder lib/modules/<release>, after depmod. Raises MissingModule."""
    known = Modules(
        _read(modules, "modules.dep").decode(), _read(modules, "modules.builtin").decode(),
        _read_if_there(modules, "modules.softdep").decode(), _read_if_there(modules, "modules.alias").decode(),
        _read_if_there(modules, "modules.builtin.modinfo"))
    init = resources.files(__package__).joinpath("init.sh").read_bytes()
    entries = base(busybox, init)
    for number, step in enumerate(known.order()):
        if not step.path.endswith(".ko"):
            raise MissingModule(f"the module {step.path} is compressed, which busybox's insmod can't load")
        kind = "ko" if step.must else "soft.ko"
        entries.append(cpio.file(f"modules/{number:02}-{module_name(step.path)}.{kind}", _read(modules, step.path)))
    return cpio.archive(entries)


def base(busybox: bytes, init: bytes) -> list[cpio.Entry]:
    """Folders, busybox and `/init`: what any initramfs of ours begins with."""
    return [
        *(cpio.directory(name) for name in _FOLDERS),
        cpio.file("bin/busybox", busybox, executable=True),
        cpio.file("init", init, executable=True),
    ]


def _read(folder: str, path: str) -> bytes:
    with open(os.path.join(folder, path), "rb") as file:
        return file.read()


def _read_if_there(folder: str, path: str) -> bytes:
    return _read(folder, path) if os.path.exists(os.path.join(folder, path)) else b""
