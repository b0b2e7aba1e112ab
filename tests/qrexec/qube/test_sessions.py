"""Users' sessions: a keeper's report, refusals, and what becomes of a session whose keeper dies."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.qrexec.agents import USER, children_of_ours, host, programs_ended, service

from cloison.qrexec.inheritance import Session
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.qube import session_keeper
from cloison.qrexec.qube.sessions import Sessions, parse
from cloison.wire.qrexec import STDERR, STDOUT, Data, Exit

# Plays the keeper: notes that it was started and for whom, says each agent its line, waits for a byte from one.
KEEPER = """\
import os, socket, sys
with open({log!r}, "a") as log: log.write(sys.argv[1] + " " + str(os.getpid()) + "\\n")
said = b""
while not said:
    agent, _ = socket.socket(fileno=os.dup(0)).accept()
    try: agent.sendall({line!r})
    except OSError: continue
    said = agent.recv(1) if {wait} else b"no"
    agent.close()
with open({log!r}, "a") as log: log.write("closed\\n")
"""


class Place:
    """Sessions with a keeper of the test's."""

    def __init__(self, folder: Path, line: bytes | None = None, *, wait: bool = True, lasting: float = 0.0) -> None:
        said = json.dumps({"environment": {"XDG_RUNTIME_DIR": "/run/here"}, "limits": [], "umask": 0o27}).encode() + b"\n"
        self.log = folder / "log"
        self.marks, self.keepers_folder = folder / "sessions", folder / "keepers"
        text = KEEPER.format(log=str(self.log), line=said if line is None else line, wait=wait)
        self._make = lambda: Sessions(str(self.marks), [sys.executable, "-Ic", text], lasting, str(self.keepers_folder))
        self.lost: asyncio.Queue[str] = asyncio.Queue()
        self.successor()

    def successor(self) -> None:
        """What a new agent makes for itself."""
        self.sessions = self._make()
        self.sessions.on_lost = self.lost.put_nowait

    def die(self) -> None:
        """As the kernel does it for an agent that is killed: its descriptors are closed, and nothing else."""
        loop = asyncio.get_running_loop()
        for user in self.sessions._users.values():
            if user._stream is not None:
                loop.remove_reader(user._stream)
                user._stream.close()

    async def enter(self, user: str = USER) -> Session | CannotStart:
        async with asyncio.timeout(PATIENCE):
            entered: asyncio.Future[Session | CannotStart] = asyncio.get_running_loop().create_future()
            self.sessions.enter(user, entered.set_result)
            return await entered

    def keepers(self) -> list[int]:
        """Their process ids, in the order they were started."""
        return [int(line.split()[1]) for line in self.log.read_text().splitlines() if line != "closed"]


def run(work: Callable[[], Awaitable[None]]) -> None:
    """And see every program to its end."""
    others = children_of_ours()

    async def timed() -> None:
        async with asyncio.timeout(PATIENCE):
            await work()
        await programs_ended(others)

    asyncio.run(timed())


async def ended(pid: int) -> None:
    """Until that process is gone."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, over.set_result, None)
    await over
    loop.remove_reader(pidfd)
    os.close(pidfd)


def test_one_keeper_serves_all_calls_of_its_user(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        first, second = await asyncio.gather(place.enter(), place.enter())
        assert first == second == Session({"XDG_RUNTIME_DIR": "/run/here"}, (), 0o27)
        assert await place.enter("") == first
        [keeper] = place.keepers()
        assert os.listdir(place.marks) == [USER]
        place.sessions.close()
        await ended(keeper)
        assert place.log.read_text().endswith("closed\n")

    run(work)


def test_a_session_that_is_there_is_entered_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        await place.enter()
        entered: list[object] = []
        place.sessions.enter(USER, entered.append)
        assert len(entered) == 1
        place.sessions.close()
        await ended(place.keepers()[0])

    run(work)


@pytest.mark.parametrize("line", [
    b"", b"not whole", b"[]\n", b"{}\n", b"\xff\n", b"x" * 70_000, b'{"environment": {}, "limits": [[99, 1, 1]], "umask": 0}\n',
    b'{"environment": {}, "limits": [["a", "b", "c"]], "umask": 0}\n', b'{"environment": 1, "limits": [], "umask": 0}\n',
    b'{"environment": {"a": 1}, "limits": [], "umask": 0}\n', b'{"environment": {}, "limits": [], "umask": "x"}\n',
])
def test_any_error_denies(tmp_path: Path, line: bytes) -> None:
    async def work() -> None:
        place = Place(tmp_path, line, wait=line.endswith(b"\n"))
        for number in (1, 2):                # and the next call asks again
            refused = await place.enter()
            assert isinstance(refused, CannotStart) and refused.status == 125
            assert len(place.keepers()) == number
        assert os.listdir(place.marks) == []
        place.sessions.close()

    run(work)


def test_nobody_gets_no_session(tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(CannotStart) as caught:
            await Place(tmp_path).enter("no-such-user")
        assert caught.value.status == 125

    run(work)


def test_a_keeper_that_is_not_there_denies(tmp_path: Path) -> None:
    async def work() -> None:
        sessions = Sessions(keeper=[str(tmp_path / "none")], keepers=str(tmp_path / "keepers"))
        with pytest.raises(CannotStart):
            sessions.enter(USER, lambda _session: None)

    run(work)


def test_a_killed_keeper_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        await place.enter()
        os.kill(place.keepers()[0], signal.SIGKILL)
        assert await place.lost.get() == USER
        assert isinstance(await place.enter(), Session)
        first, second = place.keepers()
        assert first != second and os.listdir(place.marks) == [USER]
        place.sessions.close()
        await ended(second)

    run(work)


def test_a_killed_agents_successor_takes_its_sessions_over(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        first = await place.enter()
        for _ in range(3):
            place.die()
            place.successor()
            assert await place.enter() == first
            assert os.listdir(place.marks) == [USER]
        [keeper] = place.keepers()
        assert "closed" not in place.log.read_text(), "nobody's session was closed meanwhile"
        place.sessions.close()
        await ended(keeper)
        assert os.listdir(place.keepers_folder) == []

    run(work)


def test_an_agent_that_dies_while_a_session_is_opened_has_a_successor_too(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        place.sessions.enter(USER, lambda _session: None)
        place.die()
        place.successor()
        assert isinstance(await place.enter(), Session)
        [keeper] = place.keepers()
        place.sessions.close()
        await ended(keeper)

    run(work)


def test_a_keeper_that_died_with_its_agent_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        await place.enter()
        place.die()
        [first] = place.keepers()
        os.kill(first, signal.SIGKILL)
        await ended(first)
        place.successor()
        assert os.listdir(place.keepers_folder) == os.listdir(place.marks) == []
        assert isinstance(await place.enter(), Session)
        assert len(place.keepers()) == 2
        place.sessions.close()
        await ended(place.keepers()[1])

    run(work)


def test_only_the_agent_may_ask_keepers(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        assert place.keepers_folder.stat().st_mode & 0o777 == 0o700

    run(work)


def test_one_that_dies_at_once_is_not_replaced_before_it_is_wanted(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path, wait=False, lasting=3600.0)
        for number in (1, 2):
            await place.enter()
            await place.lost.get()
            assert len(place.keepers()) == number and os.listdir(place.marks) == []

    run(work)


def test_no_more_calls_wait_than_a_bound(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        answers = [asyncio.get_running_loop().create_future() for _ in range(256)]
        for answer in answers:
            place.sessions.enter(USER, answer.set_result)
        with pytest.raises(CannotStart):
            place.sessions.enter(USER, lambda _session: None)
        assert {type(session) for session in await asyncio.gather(*answers)} == {Session}
        place.sessions.close()
        await ended(place.keepers()[0])

    run(work)


def test_marks_of_a_killed_agent_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions/other").touch()

    async def work() -> None:
        Sessions(str(tmp_path / "sessions"), keepers=str(tmp_path / "keepers"))
        assert os.listdir(tmp_path / "sessions") == []

    run(work)


# -- what calls see of it ----------------------------------------------------------------------------------------------------


def test_calls_are_made_in_their_users_session(tmp_path: Path) -> None:
    async def work() -> None:
        place = Place(tmp_path)
        async with host(tmp_path, sessions=place.sessions) as there:
            stream = await there.call('echo "$XDG_RUNTIME_DIR $HOME"; umask')
            said = await stream.rest()
            assert said[0] == Data(STDOUT, f"/run/here {os.path.expanduser('~')}\n0027\n".encode()) and said[-1] == Exit(0)
            place.sessions.close()

    run(work)


def test_a_refused_session_is_125_and_a_socket_service_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path / "rpc"))

    async def work() -> None:
        place = Place(tmp_path, b"", wait=False)
        service(tmp_path, "test.S", "echo never")
        server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), str(tmp_path / "rpc/test.Socket"))
        async with server, host(tmp_path, sessions=place.sessions) as there:
            for command in ("echo never", "QUBESRPC test.S+ work"):
                stream = await there.call(command)
                assert await stream.rest() == [Data(STDOUT, b""), Data(STDERR, b""), Exit(125)]
                assert await there.terminated()
            stream = await there.call("QUBESRPC test.Socket+ work")
            await stream.end_input()
            assert (await stream.rest())[-1] == Exit(0)

    run(work)


def test_wait_for_session_is_asked_for_once_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path / "rpc"))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config/test.S").write_text("wait-for-session = true\n")

    async def work() -> None:
        place = Place(tmp_path)
        service(tmp_path, "test.S", "echo done")
        service(tmp_path, "qubes.WaitForSession", f"cat >> {tmp_path}/waited")
        async with host(tmp_path, sessions=place.sessions) as there:
            async def call() -> None:
                assert Data(STDOUT, b"done\n") in await (await there.call("QUBESRPC test.S+ work")).rest()
                assert await there.terminated()

            await call()
            await call()
            assert (tmp_path / "waited").read_text() == f"{USER}\n"
            forget = place.sessions.on_lost

            def lost(user: str) -> None:
                forget(user)
                place.lost.put_nowait(user)

            place.sessions.on_lost = lost
            os.kill(place.keepers()[0], signal.SIGKILL)
            await place.lost.get()
            await call()
            assert (tmp_path / "waited").read_text() == f"{USER}\n" * 2
            place.sessions.close()

    run(work)


# -- the keeper --------------------------------------------------------------------------------------------------------------


def pam(folder: Path, *lines: str) -> str:
    """A folder with the service file."""
    (folder / "qrexec").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


GOOD = ("auth required pam_permit.so", "account required pam_permit.so", "session required pam_permit.so")


def test_pam_opens_a_session_and_gives_its_environment(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FROM_PAM=yes\nUMLAUT=\u00e4\n")
    variables = f"session required pam_env.so conffile=/dev/null envfile={tmp_path}/env"
    opened = session_keeper.Pam(USER, pam(tmp_path, *GOOD, variables))
    opened.open()
    found = opened.environment()
    opened.close()
    assert (found["FROM_PAM"], found["UMLAUT"]) == ("yes", "\u00e4")


@pytest.mark.parametrize(("kind", "step"), [
    ("auth", "pam_authenticate"), ("account", "pam_acct_mgmt"), ("session", "pam_open_session")])
def test_whatever_pam_refuses_is_refused(tmp_path: Path, kind: str, step: str) -> None:
    lines = [line.replace("permit", "deny") if line.startswith(kind) else line for line in GOOD]
    with pytest.raises(session_keeper.Refused, match=step):
        session_keeper.Pam(USER, pam(tmp_path, *lines)).open()


def test_nobody_answers_a_question_for_a_password(tmp_path: Path) -> None:
    with pytest.raises(session_keeper.Refused):
        session_keeper.Pam(USER, pam(tmp_path, "auth required pam_unix.so", *GOOD[1:])).open()


def test_the_keepers_report_is_what_the_agent_reads() -> None:
    assert parse(session_keeper.describe({"A": "b", "C": "\udcff"})) == Session({"A": "b", "C": "\udcff"}, (), parse_umask())


def parse_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_keeper_serves_an_agents_successor_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    code = (f"import sys; sys.path.insert(0, {os.path.dirname(session_keeper.__file__)!r}); import session_keeper; "
            f"sys.exit(session_keeper.main(sys.argv[1], {pam(tmp_path, *GOOD)!r}))")

    async def work() -> None:
        place = Place(tmp_path)
        place._make = lambda: Sessions("", [sys.executable, "-ISc", code], keepers=str(place.keepers_folder))
        place.successor()
        first = await place.enter()
        assert isinstance(first, Session)
        place.die()
        place.successor()
        assert await place.enter() == first
        place.sessions.close()
        assert os.listdir(place.keepers_folder) == []

    run(work)
