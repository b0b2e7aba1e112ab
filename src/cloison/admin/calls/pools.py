"""Storage pools (reference/admin-api.md 5.9)."""
from __future__ import annotations

import os
import re

from cloison.admin.calls.volumes import flag, number
from cloison.admin.qubesd import Call, Driver
from cloison.errors import BadRequest, BadValue, CloisonError, NotPermitted, PoolInUse, StorageError
from cloison.model import removal
from cloison.model.volumes import Pool
from cloison.plan import volumes as rules

MAX_PATH = 1024
_DEFAULTS = {"revisions_to_keep": "1", "ephemeral_volatile": "False"}
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


async def _space(call: Call, pool: Pool) -> tuple[int, int] | None:
    """Size and usage in bytes of where the pool is kept, if it can be told."""
    try:
        return None if pool.driver == "linux-kernel" else await call.qubesd.in_storage(call.qubesd.pool(pool.name).space)
    except StorageError:
        return None


def _included_in(call: Call, pool: Pool) -> str | None:
    """Name of the first pool in whose folder this one is kept."""
    folders = call.qubesd.pool_folders
    for other, above in folders.items():
        if pool.name in folders and other != pool.name and os.path.commonpath((above, folders[pool.name])) == above:
            return other
    return None


async def info(call: Call) -> str:
    pool = _pool(call)
    pairs = {**pool.config, "driver": pool.driver, "name": pool.name}
    lines = [f"{key}={value}\n" for key, value in sorted(pairs.items())]
    space = await _space(call, pool)
    if space is not None:
        lines += [f"size={space[0]}\n", f"usage={space[1]}\n"]
    above = _included_in(call, pool)
    return "".join(lines) + (f"included_in={above}\n" if above else "")


async def usage_details(call: Call) -> str:
    space = await _space(call, _pool(call))
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


async def add(call: Call) -> None:
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
    await _add(call, Pool(name, call.argument, _config(driver, options)))


async def _add(call: Call, pool: Pool) -> None:
    async with call.qubesd.changing_pools:
        if pool.name in call.system.pools:
            raise PoolInUse(f"there is a pool {pool.name} already")
        await call.qubesd.open_pool(pool.name, pool.driver, pool.config)
        try:
            with call.qubesd.transaction():
                call.system.put_pool(pool)
                call.system.journal.emit("", "pool-add", pool=pool.name)
        except BaseException:
            await call.qubesd.close_pool(pool.name)
            raise


def _config(driver: Driver, options: dict[str, str]) -> dict[str, str]:
    """What a pool is stored with: every option a value that its readers can take. Raises CloisonError for others."""
    config = {key: value for key, value in _DEFAULTS.items() if key in driver.options} | options
    if not os.path.isabs(config["dir_path"]) or len(config["dir_path"]) > MAX_PATH or not config["dir_path"].isprintable():
        raise CloisonError("dir_path must be an absolute path")
    if "revisions_to_keep" in config:
        rules.check_revisions(number(config["revisions_to_keep"].encode(), signed=True))
    for key in ("ephemeral_volatile", "setup_check"):
        if key in config:
            config[key] = str(flag(config[key].encode()))
    return config


async def remove(call: Call) -> None:
    async with call.qubesd.changing_pools:
        pool = _pool(call)
        removal.check_pool_removable(call.system, pool.name)
        with call.qubesd.transaction():
            call.system.journal.emit("", "pool-pre-delete", pool=pool.name)
            call.system.drop_pool(pool.name)
            call.system.journal.emit("", "pool-delete", pool=pool.name)
        await call.qubesd.close_pool(pool.name)


def set_revisions(call: Call) -> None:
    pool = _pool(call)
    keep = number(call.payload, signed=True)
    if keep < -1:
        raise BadRequest("revisions_to_keep must be -1 (no snapshots) or more")
    rules.check_revisions(keep)
    if not _takes(call, pool, "revisions_to_keep", change=keep != 0):
        return
    with call.qubesd.transaction():
        call.system.configure_pool(pool.name, revisions_to_keep=str(keep))


def set_ephemeral(call: Call) -> None:
    pool = _pool(call)
    ephemeral = flag(call.payload)
    if not _takes(call, pool, "ephemeral_volatile", change=ephemeral):
        return
    with call.qubesd.transaction():
        call.system.configure_pool(pool.name, ephemeral_volatile=str(ephemeral))


def _takes(call: Call, pool: Pool, option: str, *, change: bool) -> bool:
    """Whether the driver has the option. Raises BadValue if it has not and would have to be told something else than nothing."""
    driver = call.qubesd.drivers.get(pool.driver)
    if driver is None or option in driver.options:
        return True
    if change:
        raise BadValue(f"pool {pool.name} has no setting {option}: its driver {pool.driver} takes none")
    return False
