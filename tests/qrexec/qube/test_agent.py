"""The qube's end of qrexec: control channel, calls into the qube, calls out of it, over Unix sockets."""
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.patience import PATIENCE
from tests.qrexec.agents import PEER, PORT, USER, XID, Host, Stream, host, service

from cloison.qrexec import ending
from cloison.qrexec.qube import agent
from cloison.wire import qrexec
from cloison.wire.qrexec import EXIT_CODE, STDERR, STDOUT, Data, Exit, Message, Trigger

OUT_END, ERR_END = Data(STDOUT, b""), Data(STDERR, b"")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rpc", "config"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path / "rpc"))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "config"))
    monkeypatch.setattr(ending, "GRACE", 0.01)       # no test waits for a program that is to be killed


def run(folder: Path, talk: Callable[[Host], Awaitable[None]], version: int = qrexec.VERSION) -> None:
    async def whole() -> None:
        async with host(folder, version) as place:
            await talk(place)

    asyncio.run(whole())


def answer(folder: Path, command: str, stdin: bytes | None = b"", kind: int = qrexec.EXEC_CMDLINE) -> list[Message]:
    """All that one call gives, by stream; the status is last, and the agent has said that the channel is over."""
    found: list[Message] = []

    async def talk(place: Host) -> None:
        stream = await place.call(command, kind)
        if stdin is not None:
            if stdin:
                await stream.say(stdin)
            await stream.end_input()
        found.extend(await stream.rest())
        assert await place.terminated()

    run(folder, talk)
    *said, status = found
    assert isinstance(status, Exit)
    streams = [message for message in said if isinstance(message, Data)]
    assert streams == said
    return [*sorted(streams), status]


def listener(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    server.setblocking(False)
    return server


# -- programs --------------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    command = "cat; echo complaint >&2; exit 3"
    assert answer(tmp_path, command, b"text") == [OUT_END, Data(STDOUT, b"text"), ERR_END, Data(STDERR, b"complaint\n"), Exit(3)]


def test_killed_program_is_128_and_the_signal(tmp_path: Path) -> None:
    assert answer(tmp_path, "kill -9 $$")[-1] == Exit(137)


def test_the_status_waits_for_no_end_of_input(tmp_path: Path) -> None:
    assert answer(tmp_path, "exit 4", stdin=None)[-1] == Exit(4)


def test_service_and_its_words(tmp_path: Path) -> None:
    service(tmp_path, "test.S", 'echo "$1,$#,$QREXEC_REMOTE_DOMAIN,$QREXEC_SERVICE_FULL_NAME,$QREXEC_SERVICE_ARGUMENT"')
    assert Data(STDOUT, b"a+b,1,work,test.S+a+b,a+b\n") in answer(tmp_path, "QUBESRPC test.S+a+b work")
    assert Data(STDOUT, b",0,work,test.S+,\n") in answer(tmp_path, "QUBESRPC test.S+ work")


@pytest.mark.parametrize(("command", "status"), [
    ("QUBESRPC test.None work", 127), ("QUBESRPC test.Plain work", 125), ("QUBESRPC test.S", 125), ("QUBESRPC test.S  work", 125),
    ("QUBESRPC test.S work name x", 125), ("QUBESRPC test.NoInterpreter work", 127), ("QUBESRPC test.Config work", 125),
])
def test_what_can_not_start(tmp_path: Path, command: str, status: int) -> None:
    service(tmp_path, "test.S", "true")
    service(tmp_path, "test.Config", "true")
    service(tmp_path, "test.NoInterpreter", "#!/nowhere\n")
    (tmp_path / "rpc" / "test.Plain").write_text("")
    (tmp_path / "config" / "test.Config").write_text("wait-for-session = maybe\n")
    assert answer(tmp_path, command, stdin=None) == [OUT_END, ERR_END, Exit(status)]
    assert answer(tmp_path, command, stdin=None, kind=qrexec.JUST_EXEC) == [Exit(status)]


def test_unknown_user_and_other_users(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        for user in ("no-such-user", "x" * 300):
            await place.daemon.send(qrexec.exec_command(qrexec.EXEC_CMDLINE, PEER, PORT, f"{user}:true"))
        service(tmp_path, "test.Forced", "true")
        (tmp_path / "config" / "test.Forced").write_text("force-user = 'no-such-user'\n")
        stream = await place.call("QUBESRPC test.Forced work", port=PORT + 1)
        assert await stream.rest() == [OUT_END, ERR_END, Exit(125)]

    run(tmp_path, talk)


def test_just_exec(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        done = tmp_path / "done"
        os.mkfifo(done)
        stream = await place.call(f"cat; echo lost; echo lost >&2; echo x > {done}", qrexec.JUST_EXEC)
        assert await stream.rest() == [Exit(0)]
        assert await place.terminated()
        assert done.read_text() == "x\n"

    run(tmp_path, talk)


def test_children_that_hold_the_output_hold_the_call(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        stream = await place.call(f"(read x < {gate}; echo late) & exit 5")
        with gate.open("w") as opened:
            opened.write("go\n")
        assert (await stream.rest())[-1] == Exit(5)
        assert await place.terminated()

    run(tmp_path, talk)


def test_streams_that_end_early(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        stream = await place.call("exec 0<&0; read x; exec >&-; read x; exec 2>&-; read x; exit $x")
        await stream.say(b"\n")
        assert await stream.next() == OUT_END
        await stream.say(b"\n")
        assert await stream.next() == ERR_END
        await stream.say(b"42\n")
        assert await stream.rest() == [Exit(42)]

    run(tmp_path, talk)


def test_a_service_whose_caller_is_gone(tmp_path: Path) -> None:
    """It sees the end of its input and is not interrupted; its port is free."""
    async def talk(place: Host) -> None:
        done = tmp_path / "done"
        os.mkfifo(done)
        service(tmp_path, "test.Long", f"echo started; cat; echo over > {done}")
        stream = await place.call("QUBESRPC test.Long work")
        assert await stream.next() == Data(STDOUT, b"started\n")
        stream.close()
        assert await place.terminated()
        assert done.read_text() == "over\n"

    run(tmp_path, talk)


@pytest.mark.parametrize("size", [65535, 65536, 65537, 1 << 20])
def test_bytes_both_ways_at_the_limits_of_a_chunk(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)

    async def talk(place: Host) -> None:
        stream = await place.call("cat")

        async def feed() -> None:
            await stream.say(data)
            await stream.end_input()

        feeding = asyncio.create_task(feed())
        found = [message for message in await stream.rest() if isinstance(message, Data) and message.kind == STDOUT]
        await feeding
        assert b"".join(message.payload for message in found) == data

    run(tmp_path, talk)


def test_a_chunk_over_the_limit_ends_that_call_alone(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        bad, good = await place.call("cat"), await place.call("cat", port=PORT + 1)
        await bad.send(qrexec.HEADER.pack(qrexec.STDIN, 65537))
        assert await bad.rest() == []
        assert await place.terminated()
        await good.end_input()
        assert (await good.rest())[-1] == Exit(0)

    run(tmp_path, talk)


def test_a_caller_that_reads_nothing_stops_the_program(tmp_path: Path) -> None:
    """It writes on only as far as the buffers go, and another call is served meanwhile."""
    async def talk(place: Host) -> None:
        wrote = tmp_path / "wrote"
        stuck = await place.call(f"head -c 50000000 /dev/zero; echo done > {wrote}")
        other = await place.call("echo fine", port=PORT + 1)
        assert Data(STDOUT, b"fine\n") in await other.rest()
        assert not wrote.exists()
        stuck.close()

    run(tmp_path, talk)


# -- one socket for both directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [
    'kill -USR1 $QREXEC_AGENT_PID; echo first >&0; read x; echo "got $x" >&0',
    'echo first; kill -USR1 $QREXEC_AGENT_PID; read x; echo "got $x" >&0',
])
def test_one_socket_trick(tmp_path: Path, command: str) -> None:
    found = answer(tmp_path, command, b"text\n")
    assert b"".join(message.payload for message in found if isinstance(message, Data)) == b"first\ngot text\n"
    assert found[0] == OUT_END and found[-2:] == [ERR_END, Exit(0)]


def test_what_a_program_says_on_its_stdin_is_heard_while_its_stdout_is_open(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        stream = await place.call('kill -USR1 $QREXEC_AGENT_PID; echo first >&0; read x; echo "got $x" >&0')
        assert await stream.next() == Data(STDOUT, b"first\n")
        await stream.say(b"text\n")
        assert await stream.next() == Data(STDOUT, b"got text\n")
        assert (await stream.rest())[-1] == Exit(0)

    run(tmp_path, talk)


def test_one_socket_trick_of_one_program_leaves_others_alone(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        plain = await place.call("read x; echo plain")
        trick = await place.call("kill -USR1 $QREXEC_AGENT_PID; echo a >&0", port=PORT + 1)
        assert Data(STDOUT, b"a\n") in await trick.rest()
        await plain.say(b"\n")
        assert Data(STDOUT, b"plain\n") in await plain.rest()

    run(tmp_path, talk)


# -- sockets -----------------------------------------------------------------------------------------------------------------


async def connected(server: socket.socket) -> Stream:
    with server:
        async with asyncio.timeout(PATIENCE):
            accepted, _ = await asyncio.get_running_loop().sock_accept(server)
    return Stream(*await asyncio.open_unix_connection(sock=accepted), qrexec.FROM_CLIENT_VM)


@pytest.mark.parametrize(("config", "greeting"), [("", b"test.S+a work\0"), ("skip-service-descriptor = true\n", b"")])
def test_socket_service(tmp_path: Path, config: str, greeting: bytes) -> None:
    async def talk(place: Host) -> None:
        (tmp_path / "config" / "test.S").write_text(config)
        server = listener(tmp_path / "rpc" / "test.S")
        stream = await place.call("QUBESRPC test.S+a work")
        far = place._keep(await connected(server))
        assert await stream.next() == ERR_END
        await stream.say(b"question")
        await stream.end_input()
        assert await place.raw(far, 1000) == greeting + b"question"
        far.writer.write(b"answer")
        far.close()
        assert await stream.rest() == [Data(STDOUT, b"answer"), OUT_END, Exit(0)]
        assert await place.terminated()

    run(tmp_path, talk)


def test_socket_service_waits_for_the_end_of_both(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        server = listener(tmp_path / "rpc" / "test.S")
        stream = await place.call("QUBESRPC test.S work")
        far = place._keep(await connected(server))
        far.writer.write_eof()
        assert [await stream.next(), await stream.next()] == [ERR_END, OUT_END]
        await stream.say(b"more")
        await stream.end_input()
        assert (await place.raw(far, 1000)).endswith(b"more")
        assert await stream.rest() == [Exit(0)]

    run(tmp_path, talk)


@pytest.mark.parametrize("key", ["exit-on-client-eof", "exit-on-service-eof"])
def test_socket_service_that_ends_with_one_side(tmp_path: Path, key: str) -> None:
    async def talk(place: Host) -> None:
        (tmp_path / "config" / "test.S").write_text(f"{key} = true # or not\n")
        server = listener(tmp_path / "rpc" / "test.S")
        stream = await place.call("QUBESRPC test.S work")
        far = place._keep(await connected(server))
        if key == "exit-on-client-eof":
            await stream.end_input()
        else:
            far.writer.write_eof()
        assert await stream.rest() == [ERR_END, OUT_END, Exit(0)]

    run(tmp_path, talk)


def test_just_exec_of_a_socket_service_gives_its_descriptor_and_nothing_more(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        server = listener(tmp_path / "rpc" / "test.S")
        stream = await place.call("QUBESRPC test.S work", qrexec.JUST_EXEC)
        far = place._keep(await connected(server))
        assert await stream.rest() == [Exit(0)]
        assert await place.raw(far, 1000) == b"test.S work\0"

    run(tmp_path, talk)


def test_nobody_behind_a_socket_is_125(tmp_path: Path) -> None:
    listener(tmp_path / "rpc" / "test.S").close()
    assert answer(tmp_path, "QUBESRPC test.S work", stdin=None) == [OUT_END, ERR_END, Exit(125)]


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        server = listener(tmp_path / "rpc" / "test.S")
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "rpc" / "test.S"))
            stream = await place.call("QUBESRPC test.S work")
            assert await stream.next() == ERR_END
            taken, _ = await asyncio.get_running_loop().sock_accept(server)
            taken.close()
        far = place._keep(await connected(server))
        far.close()
        await stream.end_input()
        assert await stream.rest() == [OUT_END, Exit(0)]

    run(tmp_path, talk)


def test_tcp_service(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        (tmp_path / "rpc" / "test.Connect").symlink_to("/dev/tcp/127.0.0.1")
        (tmp_path / "config" / "test.Connect").write_text("skip-service-descriptor = true\n")
        stream = await place.call(f"QUBESRPC test.Connect+{port} work")
        await stream.say(b"echo")
        await stream.end_input()
        assert await stream.rest() == [ERR_END, Data(STDOUT, b"echo"), OUT_END, Exit(0)]
        server.close()
        await server.wait_closed()
        closed = await place.call(f"QUBESRPC test.Connect+{port} work", port=PORT + 1)
        assert (await closed.rest())[-1] == Exit(125)

    run(tmp_path, talk)


# -- sessions and fork servers -----------------------------------------------------------------------------------------------


def test_wait_for_session(tmp_path: Path) -> None:
    """The waiter runs once for all who wait, with the user's name; they go on when it ends, whatever its status."""
    gate, log = tmp_path / "gate", tmp_path / "log"
    os.mkfifo(gate)
    service(tmp_path, "qubes.WaitForSession", f'read user; echo "$user $QREXEC_REMOTE_DOMAIN" >> {log}; read x < {gate}; exit 1')
    service(tmp_path, "test.S", "echo served")
    (tmp_path / "config" / "test.S").write_text("wait-for-session = 1\n")

    async def talk(place: Host) -> None:
        calls = [asyncio.create_task(place.call("QUBESRPC test.S work", port=PORT + n)) for n in range(3)]
        plain = await place.call("nogui:QUBESRPC test.S work", port=PORT + 9)
        assert Data(STDOUT, b"served\n") in await plain.rest()
        await asyncio.to_thread(gate.write_text, "go\n")
        for call in calls:
            assert Data(STDOUT, b"served\n") in await (await call).rest()
        assert log.read_text() == f"{USER} work\n"

    run(tmp_path, talk)


def test_a_fork_server_gets_the_calls_of_its_user(tmp_path: Path) -> None:
    async def talk() -> None:
        requests: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readexactly(16 + len("echo x") + 1))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_unix_server(serve, str(tmp_path / f"fork.{USER}"))
        async with host(tmp_path, fork_server=str(tmp_path / "fork.%s")) as place:
            await place.daemon.send(qrexec.exec_command(qrexec.EXEC_CMDLINE, PEER, PORT, f"{USER}:echo x"))
            assert await place.terminated()
            words = b"echo x\0"
            assert requests == [b"".join(n.to_bytes(4, "little") for n in (qrexec.EXEC_CMDLINE, PEER, PORT, len(words))) + words]
            stream = await place.call("nogui:echo here", port=PORT + 1)
            assert Data(STDOUT, b"here\n") in await stream.rest()
        server.close()
        await server.wait_closed()

    asyncio.run(talk())


@pytest.mark.parametrize(("user", "command", "config"), [
    (USER, "nogui:echo here", ""), (USER, "QUBESRPC test.S work", "skip-service-descriptor = true"), ("../{}/x", "echo here", ""),
])
def test_what_no_fork_server_gets(tmp_path: Path, user: str, command: str, config: str) -> None:
    service(tmp_path, "test.S", "echo here")
    (tmp_path / "config" / "test.S").write_text(config)
    requests: list[bytes] = []

    async def talk() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.read(1))
            writer.close()

        servers = [await asyncio.start_unix_server(serve, str(tmp_path / name)) for name in (USER, "x")]
        async with host(tmp_path, fork_server=f"{tmp_path}/%s") as place:
            found = await (await place.call(command, user=user.format(tmp_path.name))).rest()
            assert Data(STDOUT, b"here\n") in found if user == USER else found[-1] == Exit(125)
        for server in servers:
            server.close()

    asyncio.run(talk())
    assert requests == []


# -- calls out of the qube ---------------------------------------------------------------------------------------------------


async def ask(place: Host, service_name: str = "test.S+a", source: str = "") -> tuple[Stream, Trigger]:
    program = await place.program()
    await program.send(qrexec.trigger_service4(source, "target", qrexec.request_id("SOCKET"), service_name))
    trigger = await place.daemon.next()
    assert isinstance(trigger, Trigger)
    return program, trigger


def test_trigger_accepted(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        program, trigger = await ask(place, source="other")
        assert trigger[:2] == ("other", "target") and trigger.service == "test.S+a" and trigger.request_id.startswith(b"SOCKET")
        await place.daemon.send(qrexec.service_connect(PEER, PORT, trigger.request_id))
        assert await place.raw(program, 8) == qrexec.PARAMS.pack(PEER, PORT)
        program.close()
        assert await place.terminated()

    run(tmp_path, talk)


def test_trigger_refused(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        program, trigger = await ask(place)
        await place.daemon.send(qrexec.service_refused(trigger.request_id))
        assert await place.raw(program, 8) == b""

    run(tmp_path, talk)


def test_an_answer_never_reaches_another_program(tmp_path: Path) -> None:
    """One that asked and is gone: its answer ends its call, and a later program has another id."""
    async def talk(place: Host) -> None:
        gone, first = await ask(place)
        gone.close()
        staying, second = await ask(place)
        assert first.request_id != second.request_id
        await place.daemon.send(qrexec.service_connect(PEER, PORT, first.request_id), qrexec.service_refused(second.request_id))
        assert await place.terminated()
        assert await place.raw(staying, 8) == b""

    run(tmp_path, talk)


@pytest.mark.parametrize(("version", "source", "asked"), [
    (4, "", True), (4, "other", True), (3, "", True), (2, "", True), (3, "other", False), (2, "other", False),
])
def test_triggers_in_the_daemons_version(tmp_path: Path, version: int, source: str, asked: bool) -> None:
    async def talk(place: Host) -> None:
        program = await place.program()
        await program.send(qrexec.trigger_service4(source, "target", qrexec.request_id("SOCKET"), "test.S"))
        if not asked:
            assert await place.raw(program, 8) == b""
            return
        place.daemon._decoder._lengths = qrexec.FROM_AGENT.versions[version]     # what a daemon of that version takes
        trigger = await place.daemon.next()
        assert isinstance(trigger, Trigger) and trigger.service == "test.S" and trigger.target == "target"

    run(tmp_path, talk, version)


@pytest.mark.parametrize("message", [
    qrexec.HEADER.pack(0x212, 160) + bytes(160), qrexec.HEADER.pack(0x213, 160), qrexec.HEADER.pack(0x213, 65161), qrexec.hello(4),
    qrexec.HEADER.pack(0x213, 161) + bytes(161), qrexec.HEADER.pack(0x213, 162) + bytes(160) + b"+\0",
    qrexec.HEADER.pack(0x213, 162) + bytes(160) + b"ab", qrexec.HEADER.pack(0x213, 163) + bytes(160) + b"a\0\0",
])
def test_qsb_089_bad_requests_are_hung_up_on(tmp_path: Path, message: bytes) -> None:
    async def talk(place: Host) -> None:
        program = await place.program()
        await program.send(message)
        assert await place.raw(program, 1) == b""
        await ask(place)                 # the next one is heard, and nothing before it

    run(tmp_path, talk)


def test_qsb_085_silent_programs_keep_nobody_out(tmp_path: Path) -> None:
    """A quota of connections that say nothing must not shut the socket for those who ask."""
    async def talk(place: Host) -> None:
        for _ in range(300):
            await place.program()
        _, trigger = await ask(place)
        assert trigger.service == "test.S+a"

    run(tmp_path, talk)


def test_two_hundred_at_once(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        asked = [await ask(place, f"test.S+{n}") for n in range(200)]
        for n, (_, trigger) in enumerate(asked):
            await place.daemon.send(qrexec.service_connect(PEER, 513 + n, trigger.request_id))
        for n, (program, trigger) in enumerate(asked):
            assert trigger.service == f"test.S+{n}" and await place.raw(program, 8) == qrexec.PARAMS.pack(PEER, 513 + n)

    run(tmp_path, talk)


# -- the daemon ----------------------------------------------------------------------------------------------------------------


def test_a_lost_daemon_costs_what_was_asked_and_no_running_call(tmp_path: Path) -> None:
    async def talk(place: Host) -> None:
        program, _ = await ask(place)
        stream = await place.call("read x; echo done")
        place.daemon.close()
        assert await place.raw(program, 8) == b""
        assert place.lost == [""]
        await stream.say(b"\n")
        assert Data(STDOUT, b"done\n") in await stream.rest()
        place.channels.listen(qrexec_address(), place.agent.opened)
        await place.connect()
        assert await place.terminated()  # told to the daemon's successor

    run(tmp_path, talk)


@pytest.mark.parametrize("sent", [
    qrexec.hello(4), qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET1"), "test.S"), qrexec.HEADER.pack(0x999, 0),
], ids=["hello again", "an agent's message", "unknown"])
def test_a_daemon_that_breaks_the_protocol_is_hung_up_on_and_may_come_back(tmp_path: Path, sent: bytes) -> None:
    async def talk(place: Host) -> None:
        program, _ = await ask(place)
        await place.daemon.send(sent)
        assert await place.daemon.next() is None
        assert await place.raw(program, 8) == b""
        (reason,) = place.lost
        assert reason.startswith("qrexec control channel: ")
        other = await place.program()
        await other.send(qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET"), "test.S"))
        assert await place.raw(other, 8) == b""          # nobody can be asked
        place.channels.listen(qrexec_address(), place.agent.opened)
        await place.connect()
        await ask(place)

    run(tmp_path, talk)


def test_a_daemon_that_takes_nothing_is_asked_for_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(place: Host) -> None:
        await ask(place)                 # the daemon has said hello by then
        assert place.agent._outbox is not None
        request = qrexec.Trigger("", "dom0", qrexec.request_id("SOCKET"), "test.S")
        for waiting, asked in ((agent.MAX_ASKED, True), (agent.MAX_ASKED + 1, False)):
            monkeypatch.setattr(type(place.agent._outbox), "__len__", lambda _self, waiting=waiting: waiting)
            assert place.agent.trigger(request) is asked
        monkeypatch.undo()

    run(tmp_path, talk)


def qrexec_address() -> object:
    from cloison.wire.mux import Address

    return Address(XID, 0, qrexec.CONTROL_PORT)


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_bytes_of_a_daemon(tmp_path: Path, data: bytes) -> None:
    """After its hello: they mean something, or are a violation, or wait for more; nothing else happens."""
    async def talk(place: Host) -> None:
        await place.daemon.send(data)
        place.daemon.writer.write_eof()
        while await place.daemon.next() is not None:
            pass
        assert len(place.lost) == 1

    run(tmp_path, talk)


PART = st.binary(min_size=1, max_size=300) | st.builds(
    lambda kind, body: qrexec.HEADER.pack(kind, len(body)) + body,
    st.sampled_from([qrexec.STDIN, STDOUT, EXIT_CODE, qrexec.HELLO]), st.binary(max_size=8))


@given(st.lists(PART, max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_bytes_of_a_caller(tmp_path: Path, parts: list[bytes]) -> None:
    """The program ends with its caller, whatever that said before."""
    async def talk(place: Host) -> None:
        stream = await place.call("cat > /dev/null; exit 7")
        for part in parts:
            await stream.send(part)
        await stream.end_input()
        stream.writer.write_eof()
        found = await stream.rest()
        assert found == [] or found[-1] == Exit(7) or all(isinstance(message, Data) for message in found)
        assert await place.terminated()

    run(tmp_path, talk)


@given(st.binary(max_size=400))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_bytes_of_a_program(tmp_path: Path, data: bytes) -> None:
    async def talk(place: Host) -> None:
        program = await place.program()
        await program.send(data)
        program.writer.write_eof()
        assert await place.raw(program, 1) == b""
        await ask(place)

    run(tmp_path, talk)


def test_exit_code_is_four_bytes() -> None:
    assert qrexec.exit_code(255) == qrexec.HEADER.pack(EXIT_CODE, 4) + b"\xff\0\0\0"
