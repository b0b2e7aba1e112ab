"""Create and remove qubes (reference/admin-api.md 5.4)."""
from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from cloison.admin.qubesd import Call, NewQube
from cloison.errors import BadPropertyValue, BadRequest, BadValue, CloisonError, NotPermitted, QubeExists, QubeNotFound
from cloison.model import labels
from cloison.model.creation import no_template
from cloison.model.domains import Qube
from cloison.plan import lifecycle
from cloison.values import InvalidValue, QubeName

VOLUMES = ("root", "private", "volatile", "kernel")
# `unfinished` is ours: who makes the qube has more to say to it, and it does not start before the mark is taken away.
_KEYS = ("name", "label", "pool", *(f"pool:{volume}" for volume in VOLUMES), "unfinished")
_TOOL = re.compile(r"[A-Za-z0-9_.-]{1,40}")


def _words(untrusted: bytes) -> dict[str, str]:
    """The words by key; each is checked as it comes, so that the first that is wrong is what the caller hears of."""
    try:
        text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("the payload must be ASCII") from None
    words: dict[str, str] = {}
    for word in text.split(" ") if text else []:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise BadRequest(f"{word[:60]!r} is not one of name=, label=, pool=, pool:<volume>=, unfinished=")
        if key in words:
            raise BadRequest(f"{key} is there twice")
        _check_word(key, value)
        words[key] = value
    return words


def _check_word(key: str, value: str) -> None:
    if key == "name":
        try:
            QubeName(value)
        except InvalidValue as error:
            raise BadValue(str(error)) from error
    elif key == "unfinished" and not _TOOL.fullmatch(value):
        raise BadRequest("unfinished= takes the name of a tool")
    elif key == "label":
        labels.check_name(value, new=True)


def _order(call: Call, klass: str, *, in_pool: bool) -> NewQube:
    """Check the words of the call in the order the reference does."""
    if call.argument and not call.system.kinds[klass].templates:
        raise BadRequest(f"a {klass} has no template")
    words = _words(call.payload)
    if "name" not in words or "label" not in words:
        raise BadRequest("name= and label= are needed")
    if words["label"] not in call.system.labels:
        # The reference answers so for an unknown label, and its clients know no better class.
        raise BadRequest(f"there is no label {words['label'][:60]!r}")
    pools = {key.removeprefix("pool:"): value for key, value in words.items() if key.startswith("pool:")}
    if "pool" in words and pools:
        raise BadRequest("use pool= or pool:<volume>=, not both")
    if ("pool" in words or pools) and not in_pool:
        raise BadRequest(f"use admin.vm.CreateInPool.{klass} to choose a pool")
    return NewQube(klass, words["name"], words["label"], call.argument or None, words.get("pool"), pools,
                   words.get("unfinished", ""))


def create(klass: str, *, in_pool: bool) -> Callable[[Call], Awaitable[None]]:
    async def handler(call: Call) -> None:
        order = _order(call, klass, in_pool=in_pool)
        if order.name in call.system.qubes:
            raise QubeExists(f"there is a qube {order.name} already")
        if order.template is not None and order.template not in call.system.qubes:
            raise QubeNotFound(f"there is no qube {order.template[:60]!r}")
        for pool in (*order.pools.values(), *([order.pool] if order.pool is not None else [])):
            call.system.pool(pool)
        if klass == "AdminVM":
            raise BadPropertyValue("there can be only one dom0")
        await call.qubesd.create(order, call.source)

    return handler


def disposable_template(call: Call) -> Qube:
    """The destination, or for dom0 what the source wants. Raises CloisonError."""
    if call.dest is not call.system.dom0:
        return call.dest
    template = call.source.reference("default_dispvm")
    if template is None:
        raise CloisonError(f"{call.source.name} has no default_dispvm: {no_template(call.system, 'DispVM')}")
    return template


async def create_disposable(call: Call) -> str:
    """Made halted, and the caller starts it; or one that was made ahead, which runs."""
    if call.argument not in ("", "preload"):
        raise NotPermitted("the argument can only be empty or preload")
    if call.payload not in (b"", b"uuid"):
        raise BadRequest("the payload can only be empty or uuid")
    template = disposable_template(call)
    if call.argument == "preload":
        call.qubesd.preload(template)
        return ""
    lifecycle.check_disposable(template)
    qube = await call.qubesd.take_preloaded(template, call.source)
    if qube is None:
        qube = await call.qubesd.create_disposable(template, call.source)
    return f"uuid:{qube.uuid}" if call.payload else qube.name


async def remove(call: Call) -> None:
    await call.qubesd.remove(call.dest)
