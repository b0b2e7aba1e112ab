"""From a request to its handler: the checks every call shares, in the order callers rely on (reference/admin-api.md 4)."""
from __future__ import annotations

from collections.abc import Mapping

from cloison.admin.methods import Method
from cloison.errors import BadRequest, BadUuid, BadValue
from cloison.model.domains import DOM0, Qube, System
from cloison.values import InvalidValue, QubeName, Uuid
from cloison.wire.admin import Request


def resolve(system: System, untrusted: str) -> Qube:
    """A qube by name or `uuid:<uuid>`. Raises QubeNotFound, BadUuid, BadValue for what can't be a name."""
    if not untrusted.startswith("uuid:"):
        try:
            return system.qube(QubeName(untrusted))
        except InvalidValue as error:
            raise BadValue(str(error)) from error
    try:
        uuid = Uuid(untrusted.removeprefix("uuid:"))
    except InvalidValue as error:
        raise BadUuid(str(error)) from error
    return system.qube_by_uuid(uuid)


def route(system: System, methods: Mapping[str, Method], request: Request) -> tuple[Method, Qube, Qube]:
    """The method, its source and its destination, checked. Raises QubeNotFound, BadUuid, BadValue, BadRequest."""
    source = resolve(system, request.source)
    dest = resolve(system, DOM0 if request.dest_kind == "keyword" else request.dest)
    if not request.argument.isascii():
        raise BadRequest("an argument must be ASCII text")
    method = methods.get(request.method)
    if method is None:
        raise BadRequest(f"there is no call {request.method[:60]!r} here")
    kind, argument, payload = tuple(method.rule)
    _check_presence("payload", payload, bool(request.payload), method.name)
    _check_presence("argument", argument, bool(request.argument), method.name)
    if (kind == "0" and dest.name != DOM0) or (kind == "V" and dest.name == DOM0):
        raise BadRequest(f"{method.name} can't be asked of {dest.name}")
    return method, source, dest


def _check_presence(what: str, rule: str, present: bool, method: str) -> None:
    if rule == "-" and present:
        raise BadRequest(f"{method} takes no {what}")
    if rule == "R" and not present:
        raise BadRequest(f"{method} needs {'an' if what[0] in 'aeiou' else 'a'} {what}")


