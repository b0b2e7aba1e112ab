"""Storage pools (reference/admin-api.md 5.9)."""
from __future__ import annotations

import re
import shutil

from cloison.admin.calls.volumes import flag, number
from cloison.admin.qubesd import Call
from cloison.errors import BadRequest, CloisonError, NotPermitted, PoolInUse
from cloison.model.volumes import Pool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _pool(call: Call) -> Pool:
    pool = call.system.pools.get(call.argument)
    if pool is None:
        raise NotPermitted(f"no pool {call.argument[:60]!r} for you")
    return pool


def listing(call: Call) -> str:
    return "".join(f"{name}\n" for name in call.system.pools)


def drivers(call: Call) -> str:
    return "".join(" ".join((name, *driver.options)) + "\n" for name, driver in call.qubesd.drivers.items())


def _space(pool: Pool) -> tuple[int, int] | None:
    """Size and usage of the file system in bytes, if it can be told."""
    try:
        usage = shutil.disk_usage(pool.config["dir_path"])
    except (KeyError, OSError):
        return None
    return usage.total, usage.used


def info(call: Call) -> str:
    pool = _pool(call)
    pairs = {**pool.config, "driver": pool.driver, "name": pool.name}
    lines = [f"{key}={value}\n" for key, value in sorted(pairs.items())]
    space = None if pool.driver == "linux-kernel" else _space(pool)
    if space is not None:
        lines += [f"size={space[0]}\n", f"usage={space[1]}\n"]
    return "".join(lines)


def usage_details(call: Call) -> str:
    pool = _pool(call)
    space = None if pool.driver == "linux-kernel" else _space(pool)
    return "" if space is None else f"data_size={space[0]}\ndata_usage={space[1]}\n"


def volumes(call: Call) -> str:
    pool = _pool(call)
    if pool.driver == "linux-kernel":
        return "".join(f"{version}\n" for version in call.system.host.kernels())
    vids = [volume.vid for qube in call.system.qubes.values() for volume in qube.volumes.values() if volume.pool == pool.name]
    return "".join(f"{vid}\n" for vid in sorted(vids))


def _options(untrusted: bytes) -> dict[str, str]:
    try:
        text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("the payload must be ASCII") from None
    options: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not equals or key in options:
            raise BadRequest(f"{line[:60]!r} is not key=value, or is there twice")
        options[key] = value
    return options


def add(call: Call) -> None:
    driver = call.qubesd.drivers.get(call.argument)
    if driver is None:
        raise NotPermitted(f"no driver {call.argument[:60]!r} for you")
    options = _options(call.payload)
    name = options.pop("name", "")
    if not _NAME.fullmatch(name):
        raise BadRequest("name= must name the pool with letters, digits, '_', '.', '-'")
    unknown = sorted(set(options) - set(driver.options))
    if unknown:
        raise BadRequest(f"driver {call.argument} has no option {unknown[0][:60]!r}")
    missing = [option for option in driver.required if option not in options]
    if missing:
        raise CloisonError(f"driver {call.argument} needs the option {missing[0]}")
    if name in call.system.pools:
        raise PoolInUse(f"there is a pool {name} already")
    config = {key: options.get(key, default) for key, default in
              (("revisions_to_keep", "1"), ("ephemeral_volatile", "False"), *options.items())
              if key in driver.options}
    call.qubesd.open_pool(name, call.argument, config)
    with call.qubesd.transaction():
        call.system.put_pool(Pool(name, call.argument, config))
        call.system.journal.emit("", "pool-add", pool=name)


def remove(call: Call) -> None:
    pool = _pool(call)
    call.system.check_pool_removable(pool.name)
    with call.qubesd.transaction():
        call.system.journal.emit("", "pool-pre-delete", pool=pool.name)
        call.system.drop_pool(pool.name)
        call.system.journal.emit("", "pool-delete", pool=pool.name)
    call.qubesd.close_pool(pool.name)


def set_revisions(call: Call) -> None:
    pool = _pool(call)
    keep = number(call.payload, signed=True)
    if keep < -1 or keep > 10**6:
        raise BadRequest("revisions_to_keep must be -1 (no snapshots) or more")
    with call.qubesd.transaction():
        call.system.configure_pool(pool.name, revisions_to_keep=str(keep))


def set_ephemeral(call: Call) -> None:
    pool = _pool(call)
    with call.qubesd.transaction():
        call.system.configure_pool(pool.name, ephemeral_volatile=str(flag(call.payload)))
