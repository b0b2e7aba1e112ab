"""`qrexec-client -c`, which answers a qube's request, and calls to services of the host (reference/qrexec.md 8, 11).

The reference's daemon starts it for each call; ours does the same work by itself, so only others use this.
"""
from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from cloison.errors import CloisonError, PeerError
from cloison.qrexec import caller, lookup, process
from cloison.qrexec.host import client_main, host_service, qubesd_client
from cloison.qrexec.host.client_main import Failure, Options
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.session_waiter import Waiter
from cloison.runtime.paths import Paths
from cloison.runtime.vchan_socket import VchanSocket
from cloison.runtime.vchan_socket import folder as vchan_folder
from cloison.wire.mux import Address
from cloison.wire.qrexec import Command, parse_host_command, parse_own_command, request_id

DISPOSABLE = "@dispvm:"


def kill(target: str) -> None:
    """`admin.vm.Kill`. A failure is told and changes no status."""
    try:
        asyncio.run(qubesd_client.call(Paths.from_environment().socket("qubesd.sock"), target, "admin.vm.Kill"))
    except (CloisonError, OSError) as error:
        print(f"qrexec-client: {target} can't be killed: {error}", file=sys.stderr)


def run(options: Options, target: str, command: str, folder: str) -> int:
    """Raises Failure, OSError."""
    request = options.get("c")
    if request is None:
        _become_service(command)
    ident, name, xid = _origin(request)
    source = os.path.join(folder, f"qrexec.{name}")
    if target in client_main.HOSTS:
        return asyncio.run(_serve(source, ident, command))
    join = partial(_join, source, ident, xid, command, folder)
    if target.startswith(DISPOSABLE):
        return asyncio.run(_with_disposable(join, target.removeprefix(DISPOSABLE)))
    return join(target, wait="W" in options)


def _origin(text: str) -> tuple[bytes, str, int]:
    """Request id (32 bytes), name and domain id of who asked."""
    words = text.split(",")
    try:
        ident, name, xid = words
        return request_id(ident), qubesd_client.named(name), int(xid)
    except ValueError as error:
        raise Failure(f"-c needs a request id, a qube's name and its id: {error}") from error


# -- the host calls itself -------------------------------------------------------------------------------------------------


def _become_service(line: str) -> NoReturn:
    """In place of this program: a service of the host's, executable ones only, as our own user. Raises Failure."""
    user, _, line = line.partition(":")
    if user != "DEFAULT":
        raise Failure("a service of the host runs as who calls it: the user must be DEFAULT")
    try:
        command = parse_own_command(line)
        service = lookup.find(command.service, command.argument, lookup.service_path())
    except PeerError as error:
        raise Failure(str(error)) from error
    except CannotStart as error:
        print(f"qrexec-client: {error}", file=sys.stderr)
        sys.exit(error.status)
    if not isinstance(service, lookup.Executable):
        raise Failure(f"{command.service} is a socket; only a program can be called like this")
    environ = process.environment(process.own_user(), command, inherit=True)
    environ.pop("QREXEC_AGENT_PID", None)
    arguments = [command.argument] if command.argument else []
    os.execve(service.path, [service.path, *arguments], environ)  # noqa: S606 it is a program's path, and no shell's word


# -- a qube's call to the host ---------------------------------------------------------------------------------------------


async def _serve(source: str, ident: bytes, line: str) -> int:
    """The service's status, once the call is over."""
    control, domain, port = client_main.request(source, client_main.SERVICE_CONNECT, (0, 0), ident)
    channels = VchanSocket(vchan_folder(os.environ))
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    try:
        call = host_service.HostCall(_host_command(line), Waiter(inherit=True), lambda: over.set_result(None))
        address = Address(domain, int(os.environ.get("VCHAN_DOMAIN") or 0), port)
        call.serve(channels, address, lambda: None)
        await over
        await channels.flushed()
        return caller.LOST if call.status is None else call.status
    finally:
        channels.end()
        control.close()


def _host_command(line: str) -> Command | None:
    """None for one that can't be understood. What is no service is the host's own command: policy lets no qube's come here."""
    if not line.removeprefix("nogui:").startswith("QUBESRPC "):
        return Command("", command=line)
    try:
        return parse_host_command(line)
    except PeerError:
        return None


# -- a qube's call to another ----------------------------------------------------------------------------------------------


def _join(  # noqa: PLR0917
    source: str, ident: bytes, xid: int, command: str, folder: str, target: str, *, wait: bool,
) -> int:
    """Both daemons are told; the qubes meet by themselves."""
    path, line = os.path.join(folder, f"qrexec.{target}"), os.fsencode(command) + b"\0"
    called, domain, port = client_main.request(path, client_main.EXEC_CMDLINE, (xid, 0), line)
    answered, _, _ = client_main.request(source, client_main.SERVICE_CONNECT, (domain, port), ident)
    answered.close()
    if wait:
        called.settimeout(None)
        while called.recv(4096):
            pass
    called.close()
    return 0


async def _with_disposable(join: Callable[..., int], template: str) -> int:
    """It lives until the call is over."""
    qubesd = Paths.from_environment().socket("qubesd.sock")
    async with qubesd_client.Disposable(qubesd, template) as disposable:
        return await asyncio.to_thread(join, disposable.target, wait=True)
