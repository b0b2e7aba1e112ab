"""A service that runs on the host, for a qube that policy let call it (reference/qrexec.md 8 "VM -> host", 10).

Services are found in folders of this installation, and only by the words that were decided on: no shell, no other name.
"""
from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from functools import partial

from cloison.qrexec import lookup, process, service_config
from cloison.qrexec.call import Call
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.session_waiter import Waiter
from cloison.runtime.children import when_ended
from cloison.runtime.paths import Paths
from cloison.runtime.port import Channels
from cloison.wire.mux import Address
from cloison.wire.qrexec import Command, parse_host_command

SHIPPED = os.path.join(os.path.dirname(__file__), "host-rpc")
SHIPPED_CONFIG = os.path.join(os.path.dirname(__file__), "host-rpc-config")
ADMIN = "qubes-rpc-admin"                # in `run`: links to qubesd's sockets, made when qubesd starts


def set_folders(environ: MutableMapping[str, str], paths: Paths) -> None:
    """Where this process and its children find services and their configuration: the user's first, ours last."""
    own = [os.path.join(paths.run, "qubes-rpc"), os.path.join(paths.config, "qubes-rpc")]
    environ["QREXEC_SERVICE_PATH"] = ":".join([*own, os.path.join(paths.run, ADMIN), SHIPPED])
    environ["QUBES_RPC_CONFIG_PATH"] = ":".join([*(f"{folder}-config" for folder in own), SHIPPED_CONFIG])


def command(service: str, source: str, requested_target: str) -> Command:
    """A call to the host, as it was decided on. Raises PeerError for what no service can be called by."""
    kind, name = ("keyword", requested_target[1:]) if requested_target.startswith("@") else ("name", requested_target)
    return parse_host_command(f"QUBESRPC {service} {source} {kind} {name}")


def is_program(command: Command) -> bool:
    """Whether the call takes a program of its own here, as opposed to a connection to one that runs, or nothing at all."""
    try:
        return process.needs_user(command)
    except CannotStart:
        return False


class HostCall:
    """One call; a command None is one that could not be understood. `serve` is what `Daemon.connect_host` wants.

    `begun`: it has been served. `status` is the service's when it is over. A program may outlive its call: `on_idle` is called
    when both have ended.
    """

    def __init__(
        self, command: Command | None, waiter: Waiter, on_end: Callable[[], None], on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`waiter`: for services that want the session of this installation's user."""
        self._command, self._waiter, self._on_end, self._on_idle = command, waiter, on_end, on_idle
        self._busy = {"call"}            # and "program"
        self._call: Call | None = None
        self._over = False

    @property
    def begun(self) -> bool:
        return self._call is not None

    @property
    def status(self) -> int | None:
        return None if self._call is None else self._call.status

    def serve(self, channels: Channels, address: Address, done: Callable[[], None]) -> None:
        """Start the service and join it with its caller. Why it can't be started is its status."""
        def ended() -> None:
            self._over = True
            done()
            self._on_end()
            self._ended("call")

        command = self._command
        name = f"{command.full_name}-{command.source}" if command is not None and command.service else ""
        call = self._call = Call(channels, address, ended, log=name, send_stderr=False)
        try:
            if command is None:
                raise CannotStart(lookup.FAILED, "not a service and its words")
            config = service_config.load(command.service, command.argument) if command.service else service_config.DEFAULT
            start = partial(self._start, call, command, config)
            if config.wait_for_session and not command.nogui:
                self._waiter.wait(process.own_user().name, command.source, start)
            else:
                start()
        except (CannotStart, OSError) as error:
            call.refuse(_cannot_start(error))

    def _start(self, call: Call, command: Command, config: service_config.Config) -> None:
        if self._over:
            return                       # its caller has not waited
        try:
            service = process.start(command, config, inherit=True)
            if isinstance(service, process.Started):
                self._busy.add("program")
                when_ended(service.process.pid, partial(self._ended, "program"))
            call.serve(service)
        except (CannotStart, OSError) as error:
            call.refuse(_cannot_start(error))

    def _ended(self, part: str) -> None:
        self._busy.discard(part)
        if not self._busy:
            self._on_idle()


def _cannot_start(error: CannotStart | OSError) -> CannotStart:
    """An error of the system ends this call, and nothing else."""
    return error if isinstance(error, CannotStart) else CannotStart(lookup.FAILED, str(error))
