"""Who waits for a session: so many, and all of them go on when the wait ends."""
from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.runtime.ports import News

from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.session_waiter import MAX_WAITING, Waiter


def test_one_more_than_may_wait_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, service = tmp_path / "gate", tmp_path / "qubes.WaitForSession"
    os.mkfifo(gate)
    service.write_text(f"#!/bin/sh\nread go < {gate}\n")
    service.chmod(0o755)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path))
    served = []

    async def work() -> None:
        waiter, all_served = Waiter(), asyncio.Event()

        def serve() -> None:
            served.append(1)
            if len(served) == MAX_WAITING:
                all_served.set()

        for _ in range(MAX_WAITING):
            waiter.wait("user", "work", serve)
        for user in ("user", "other"):
            with pytest.raises(CannotStart, match="too many"):
                waiter.wait(user, "work", serve)
        assert served == []
        await asyncio.to_thread(gate.write_text, "go\n")
        async with asyncio.timeout(PATIENCE):
            await all_served.wait()

    asyncio.run(work())
    assert len(served) == MAX_WAITING


class Place(News):
    """A system whose `qubes.WaitForSession` writes down whom it waits for, and ends as `status` says, when `go` is called."""

    def __init__(self, folder: Path, status: int) -> None:
        super().__init__()
        self.gate, self.users, self.served = folder / "gate", folder / "users", list[str]()
        os.mkfifo(self.gate)
        service = folder / "qubes.WaitForSession"
        service.write_text(f"#!/bin/sh\nread user\necho $user $QREXEC_REMOTE_DOMAIN $MARK >> {self.users}\n"
                           f"read go < {self.gate}\nexit {status}\n")
        service.chmod(0o755)

    def serve(self, call: str) -> Callable[[], None]:
        def then() -> None:
            self.served.append(call)
            self.tell()

        return then

    async def go(self) -> None:
        """One run of the service ends."""
        await asyncio.to_thread(self.gate.write_text, "go\n")


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, talk: Callable[[Place], Awaitable[None]], status: int = 0,
) -> list[str]:
    """What the service was asked."""
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(folder))
    monkeypatch.setenv("MARK", "ours")
    place: list[Place] = []

    async def whole() -> None:
        place.append(Place(folder, status))
        await talk(place[0])

    asyncio.run(whole())
    return place[0].users.read_text().splitlines()


@pytest.mark.parametrize(("remember", "status", "runs"), [(True, 0, 1), (True, 1, 2), (False, 0, 2), (False, 1, 2)])
def test_one_run_serves_all_who_wait_and_is_remembered_where_it_ended_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remember: bool, status: int, runs: int,
) -> None:
    async def talk(place: Place) -> None:
        waiter = Waiter(remember=remember)
        waiter.wait("user", "work", place.serve("first"))
        waiter.wait("user", "other", place.serve("second"))
        assert place.served == []
        await place.go()
        await place.until(lambda: len(place.served) == 2)
        waiter.wait("user", "work", place.serve("third"))
        assert len(place.served) == (3 if runs == 1 else 2)
        if runs == 2:
            await place.go()
        await place.until(lambda: place.served == ["first", "second", "third"])

    assert run(tmp_path, monkeypatch, talk, status) == ["user work"] * runs


def test_a_session_that_has_ended_is_waited_for_anew_and_others_are_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def talk(place: Place) -> None:
        waiter = Waiter(remember=True)
        for count, user in enumerate(("user", "other"), 1):
            waiter.wait(user, "work", place.serve(user))
            await place.go()
            await place.until(lambda: len(place.served) == count)       # noqa: B023 it is over before the next turn
        waiter.forget("user")
        waiter.forget("nobody")
        waiter.wait("other", "work", place.serve("other again"))
        assert place.served[2:] == ["other again"]
        waiter.wait("user", "work", place.serve("user again"))
        assert len(place.served) == 3
        await place.go()
        await place.until(lambda: place.served[3:] == ["user again"])

    assert run(tmp_path, monkeypatch, talk) == ["user work", "other work", "user work"]


@pytest.mark.parametrize("inherit", [True, False])
def test_it_sees_our_environment_where_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherit: bool) -> None:
    async def talk(place: Place) -> None:
        Waiter(inherit=inherit).wait("user", "work", place.serve("call"))
        await place.go()
        await place.until(lambda: place.served == ["call"])

    assert run(tmp_path, monkeypatch, talk) == ["user work ours" if inherit else "user work"]


@pytest.mark.parametrize("what", ["none", "no program", "can't be run"])
def test_where_nothing_waits_for_sessions_it_goes_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(tmp_path))
    service = tmp_path / "qubes.WaitForSession"
    if what == "no program":
        service.symlink_to("/dev/tcp/127.0.0.1/1")
    elif what == "can't be run":
        service.write_text("#!/nowhere\n")
        service.chmod(0o755)
    served: list[int] = []

    async def work() -> None:
        waiter = Waiter(remember=True)
        for count in (1, 2):
            waiter.wait("user", "work", lambda: served.append(1))
            assert len(served) == count

    asyncio.run(work())
