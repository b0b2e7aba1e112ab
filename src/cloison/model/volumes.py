"""The disks of a qube: what kinds of qube have which, and where their content comes from."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

GIB = 1 << 30
ROOT_SIZE = 10 * GIB
PRIVATE_SIZE = 2 * GIB


@dataclass(frozen=True)
class Volume:
    """One disk of one qube. `source` is the vid of the volume a snapshot is taken of; sizes in bytes."""

    name: str
    pool: str
    vid: str
    size: int
    rw: bool = True
    snap_on_start: bool = False
    save_on_stop: bool = False
    source: str | None = None
    revisions_to_keep: int | None = None        # None: the pool's
    ephemeral: bool | None = None               # None: the pool's, for volatile ones

    @property
    def volatile(self) -> bool:
        return self.rw and not self.snap_on_start and not self.save_on_stop


@dataclass(frozen=True)
class Pool:
    """Where volumes are kept, as the user declared it."""

    name: str
    driver: str
    config: Mapping[str, str]                   # options of the driver, as text


def folder(klass: str, name: str) -> str:
    """First part of the vids of a qube."""
    return f"{'vm-templates' if klass == 'TemplateVM' else 'appvms'}/{name}"


def origin(name: str, pool: str, base: str, size: int) -> Volume:
    return Volume(name, pool, f"{base}/{name}", size, save_on_stop=True)


def snapshot(name: str, base: str, source: Volume) -> Volume:
    """In its source's pool: a snapshot can't leave it."""
    return Volume(name, source.pool, f"{base}/{name}", source.size, rw=source.rw, snap_on_start=True,
                  source=source.source or source.vid)


def volatile(pool: str, base: str, size: int) -> Volume:
    return Volume("volatile", pool, f"{base}/volatile", size)


def kernel(pool: str) -> Volume:
    """Kernel modules. Its vid follows the qube's kernel, so none is stored."""
    return Volume("kernel", pool, "", 0, rw=False, revisions_to_keep=0)


def for_new_qube(klass: str, name: str, pools: Mapping[str, str], template: Mapping[str, Volume] | None) -> list[Volume]:
    """The volumes of a new qube, in order. `pools`: volume name -> pool. `template`: the template's volumes."""
    if klass in ("AdminVM", "RemoteVM"):
        return []
    base = folder(klass, name)
    rest = [kernel(pools["kernel"])]
    if klass == "DispVM" and template:
        size = template["root"].size + template["private"].size
        made = [snapshot("root", base, template["root"]), snapshot("private", base, template["private"])]
        forgetful = volatile(pools["volatile"], base, size)
        if "volatile" in template:
            forgetful = replace(forgetful, rw=template["volatile"].rw, ephemeral=template["volatile"].ephemeral)
        return [*made, forgetful, *rest, *_extra(base, template)]
    private = origin("private", pools["private"], base, PRIVATE_SIZE)
    if klass == "AppVM" and template:
        root = snapshot("root", base, template["root"])
        return [root, private, volatile(pools["volatile"], base, root.size), *rest, *_extra(base, template)]
    root = origin("root", pools["root"], base, ROOT_SIZE)
    return [root, private, volatile(pools["volatile"], base, ROOT_SIZE), *rest]


def _extra(base: str, template: Mapping[str, Volume]) -> list[Volume]:
    """Further volumes of a template are passed on as snapshots."""
    known = ("root", "private", "volatile", "kernel")
    return [snapshot(name, base, volume) for name, volume in template.items() if name not in known]
