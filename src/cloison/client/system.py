"""Calls about the whole system as values: classes, labels, pools and global properties; beside `calls`, which is about qubes.

Like those they do nothing by themselves: `Connection.do` sends one and waits, `aio.Connection.do` is awaited.
"""
from __future__ import annotations

from collections.abc import Mapping

from cloison.client.calls import AdminCall, default_text, order, text
from cloison.client.domains import DOM0, key_values, lines, property_prefix

# -- classes and labels ----------------------------------------------------------------------------------------------------


def qube_classes() -> AdminCall[list[str]]:
    return AdminCall(DOM0, "admin.vmclass.List", "", b"", lines)


def device_classes() -> AdminCall[list[str]]:
    return AdminCall(DOM0, "admin.deviceclass.List", "", b"", lines)


def label_colour(name: str) -> AdminCall[str]:
    """As `0xRRGGBB`."""
    return AdminCall(DOM0, "admin.label.Get", name, b"", text)


def label_index(name: str) -> AdminCall[int]:
    return AdminCall(DOM0, "admin.label.Index", name, b"", int)


def create_label(name: str, colour: str) -> AdminCall[None]:
    """`colour`: `0xRRGGBB`."""
    return order(DOM0, "admin.label.Create", name, colour)


def remove_label(name: str) -> AdminCall[None]:
    return order(DOM0, "admin.label.Remove", name)


# -- global properties -----------------------------------------------------------------------------------------------------


def property_names() -> AdminCall[list[str]]:
    return AdminCall(DOM0, property_prefix(None) + "List", "", b"", lines)


def property_default(name: str) -> AdminCall[str | None]:
    """The default's text; None if there is none."""
    return AdminCall(DOM0, property_prefix(None) + "GetDefault", name, b"", default_text)


def property_help(name: str) -> AdminCall[str]:
    return AdminCall(DOM0, property_prefix(None) + "Help", name, b"", text)


def reset_property(name: str) -> AdminCall[None]:
    return order(DOM0, property_prefix(None) + "Reset", name)


# -- pools -----------------------------------------------------------------------------------------------------------------


def pool_drivers() -> AdminCall[dict[str, list[str]]]:
    """Options that each takes."""
    return AdminCall(DOM0, "admin.pool.ListDrivers", "", b"", lambda reply: {
        words[0]: words[1:] for line in lines(reply) if (words := line.split())})


def pool_usage(name: str) -> AdminCall[dict[str, int]]:
    """`data_size` and `data_usage` in bytes, where they are known."""
    return AdminCall(DOM0, "admin.pool.UsageDetails", name, b"", lambda reply: {
        key: int(value) for key, value in key_values(reply).items()})


def pool_volumes(name: str) -> AdminCall[list[str]]:
    """Ids of the volumes that are kept there."""
    return AdminCall(DOM0, "admin.pool.volume.List", name, b"", lines)


def add_pool(name: str, driver: str, options: Mapping[str, str]) -> AdminCall[None]:
    return order(DOM0, "admin.pool.Add", driver, "".join(f"{key}={value}\n" for key, value in {"name": name, **options}.items()))


def remove_pool(name: str) -> AdminCall[None]:
    return order(DOM0, "admin.pool.Remove", name)


def set_pool_revisions(name: str, keep: int) -> AdminCall[None]:
    return order(DOM0, "admin.pool.Set.revisions_to_keep", name, str(keep))


def set_pool_ephemeral(name: str, ephemeral: bool) -> AdminCall[None]:
    """Whether its volatile volumes are encrypted with a key that nobody keeps."""
    return order(DOM0, "admin.pool.Set.ephemeral_volatile", name, str(ephemeral))
