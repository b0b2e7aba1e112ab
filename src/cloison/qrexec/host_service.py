"""A service that runs on the host, for a qube that policy let call it (reference/qrexec.md 8 "VM -> host", 10).

Services are found in folders of this installation, and only by the words that were decided on: no shell, no other name.
"""
from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, MutableMapping

from cloison.errors import PeerError
from cloison.qrexec import lookup, process, service_config
from cloison.qrexec.call import Call
from cloison.qrexec.lookup import CannotStart
from cloison.runtime.paths import Paths
from cloison.runtime.port import Channels
from cloison.wire.mux import Address
from cloison.wire.qrexec import Command, parse_host_command

SHIPPED = os.path.join(os.path.dirname(__file__), "host-rpc")
SHIPPED_CONFIG = os.path.join(os.path.dirname(__file__), "host-rpc-config")
ADMIN = "qubes-rpc-admin"                # in `run`: links to qubesd's sockets, made when qubesd starts
WAIT_FOR_SESSION = "qubes.WaitForSession"


def set_folders(environ: MutableMapping[str, str], paths: Paths) -> None:
    """Where this process and its children find services and their configuration: the user's first, ours last."""
    own = [os.path.join(paths.run, "qubes-rpc"), os.path.join(paths.config, "qubes-rpc")]
    environ["QREXEC_SERVICE_PATH"] = ":".join([*own, os.path.join(paths.run, ADMIN), SHIPPED])
    environ["QUBES_RPC_CONFIG_PATH"] = ":".join([*(f"{folder}-config" for folder in own), SHIPPED_CONFIG])


def command_line(service: str, source: str, requested_target: str) -> str:
    """The words of a call to the host, as they were decided on. Raises PeerError for what no service can be called by."""
    kind, name = ("keyword", requested_target[1:]) if requested_target.startswith("@") else ("name", requested_target)
    line = f"QUBESRPC {service} {source} {kind} {name}"
    parse_host_command(line)
    return line


class HostCall:
    """One such call. `serve` is what `Daemon.connect_host` wants."""

    def __init__(self, line: str, on_end: Callable[[], None]) -> None:
        self._line, self._on_end = line, on_end
        self._call: Call | None = None

    def serve(self, channels: Channels, address: Address, done: Callable[[], None]) -> None:
        """Start the service and join it with its caller. Why it can't be started is its status."""
        def ended() -> None:
            done()
            self._on_end()

        command = parse_host_command(self._line)
        call = self._call = Call(channels, address, ended, log=f"{command.full_name}-{command.source}", send_stderr=False)
        try:
            config = service_config.load(command.service, command.argument)
            if config.wait_for_session and not command.nogui:
                self._wait_for_session(command, config)
            else:
                call.serve(process.start(command, config, inherit=True))
        except (CannotStart, PeerError) as error:
            call.refuse(error)

    def _wait_for_session(self, command: Command, config: service_config.Config) -> None:
        """The service starts when qubes.WaitForSession has ended, however that ends. Raises CannotStart."""
        call, loop = self._call, asyncio.get_running_loop()
        assert call is not None
        waiter = Command("", service=WAIT_FOR_SESSION, source=command.source)
        if not isinstance(lookup.find(waiter.service, None, lookup.service_path()), lookup.Executable):
            raise CannotStart(lookup.FAILED, f"{WAIT_FOR_SESSION} must be a program")
        started = process.start(waiter, inherit=True)
        assert isinstance(started, process.Started)
        pidfd = os.pidfd_open(started.process.pid)
        started.stdin.send(process.own_user().name.encode() + b"\n")
        started.close()

        def over() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            started.process.wait()
            try:
                call.serve(process.start(command, config, inherit=True))
            except (CannotStart, PeerError) as error:
                call.refuse(error)

        loop.add_reader(pidfd, over)
