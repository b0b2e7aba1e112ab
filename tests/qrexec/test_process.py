"""Starting what serves a call: as whom, seeing what, connected how."""
from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys

import pytest
from tests.patience import PATIENCE

from cloison.qrexec import process
from cloison.qrexec.inheritance import Session
from cloison.qrexec.process import CannotStart, User
from cloison.wire.qrexec import Command

OWN = pwd.getpwuid(os.getuid())
USER = User("user", 1000, 1000, (1000,), "/home/user", "/bin/bash")


@pytest.mark.parametrize(("command", "words"), [
    (Command("user", command="true"), {}),
    (Command("user", service="s", source="work"),
     {"QREXEC_REMOTE_DOMAIN": "work", "QREXEC_SERVICE_FULL_NAME": "s", "QREXEC_REQUESTED_TARGET_TYPE": ""}),
    (Command("user", service="s", argument="", source="work"),
     {"QREXEC_REMOTE_DOMAIN": "work", "QREXEC_SERVICE_FULL_NAME": "s+", "QREXEC_SERVICE_ARGUMENT": "",
      "QREXEC_REQUESTED_TARGET_TYPE": ""}),
    (Command("user", service="s", argument="a+b", source="work"),
     {"QREXEC_REMOTE_DOMAIN": "work", "QREXEC_SERVICE_FULL_NAME": "s+a+b", "QREXEC_SERVICE_ARGUMENT": "a+b",
      "QREXEC_REQUESTED_TARGET_TYPE": ""}),
])
def test_environment(monkeypatch: pytest.MonkeyPatch, command: Command, words: dict[str, str]) -> None:
    monkeypatch.setenv("SECRET", "of the agent")
    monkeypatch.setenv("QREXEC_REMOTE_DOMAIN", "dom0")
    monkeypatch.setenv("LC_TIME", "C")
    env = process.environment(USER, command)
    assert "SECRET" not in env and env["LC_TIME"] == "C" and env["HOME"] == "/home/user" and env["PATH"] == process.USER_PATH
    assert env["QREXEC_AGENT_PID"] == str(os.getpid())
    inherited = ("QREXEC_AGENT_PID", "QREXEC_SERVICE_PATH")
    own = {key: value for key, value in env.items() if key.startswith("QREXEC_") and key not in inherited}
    assert own == words


def test_root_has_the_administrators_path() -> None:
    assert process.environment(USER._replace(uid=0), Command("root", command="x"))["PATH"] == process.ROOT_PATH


def test_lookup_of_ourselves_and_of_nobody() -> None:
    user = process.find_user(OWN.pw_name)
    assert (user.uid, user.gid, user.home) == (OWN.pw_uid, OWN.pw_gid, OWN.pw_dir) and OWN.pw_gid in user.groups
    assert process.find_user(OWN.pw_name) is user
    for name in ("no-such-user", "", "a\0b"):
        with pytest.raises(CannotStart) as caught:
            process.find_user(name)
        assert caught.value.status == 125


def test_a_users_groups_are_those_that_name_him(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who he is is looked up anew when the user database has changed."""
    groups = [grp.struct_group(("a", "x", 1001, ["other", OWN.pw_name])), grp.struct_group(("b", "x", 1002, ["other"])),
              grp.struct_group(("c", "x", 1003, []))]
    monkeypatch.setattr(process.grp, "getgrall", lambda: groups)
    monkeypatch.setattr(process, "_users", {})
    assert process.find_user(OWN.pw_name).groups == (OWN.pw_gid, 1001)
    groups.pop(0)
    assert process.find_user(OWN.pw_name).groups == (OWN.pw_gid, 1001)
    (version, user), = process._users.values()
    process._users[OWN.pw_name] = ((version[0] - 1, version[1]), user)
    assert process.find_user(OWN.pw_name).groups == (OWN.pw_gid,)
    process._users[OWN.pw_name] = ((version[0], version[1] - 1), user)
    assert process.find_user(OWN.pw_name).groups == (OWN.pw_gid,)


def test_who_is_not_root_becomes_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_user", lambda name: USER._replace(name=name))
    monkeypatch.setattr(process.os, "geteuid", lambda: USER.uid + 1)
    with pytest.raises(CannotStart, match="can't become") as caught:
        process._runs_as("user")
    assert caught.value.status == 125
    for number in (USER.uid, 0):
        monkeypatch.setattr(process.os, "geteuid", lambda number=number: number)
        assert process._runs_as("user").name == "user"


@pytest.mark.parametrize(("kind", "target", "words"), [
    ("name", "vault", {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": "vault"}),
    ("keyword", "adminvm", {"QREXEC_REQUESTED_TARGET_TYPE": "keyword", "QREXEC_REQUESTED_TARGET_KEYWORD": "adminvm"}),
])
def test_a_service_of_the_host_is_told_what_was_asked_for(kind: str, target: str, words: dict[str, str]) -> None:
    env = process.environment(USER, Command("", service="s", source="work", target_type=kind, target=target))
    assert {key: value for key, value in env.items() if key.startswith("QREXEC_REQUESTED")} == words


def test_an_inherited_environment_has_no_word_of_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET", "QREXEC_REMOTE_DOMAIN", "QREXEC_SERVICE_PATH"):
        monkeypatch.setenv(name, "ours")
    session = Session({"SECRET": "the session's", "USER": "nobody"})
    env = process.environment(USER, Command("user", command="x"), inherit=True)
    assert env["SECRET"] == env["QREXEC_SERVICE_PATH"] == "ours" and "QREXEC_REMOTE_DOMAIN" not in env
    assert env["PATH"] == os.environ["PATH"]
    env = process.environment(USER, Command("user", command="x"), session, inherit=True)
    assert env["SECRET"] == "the session's" and env["USER"] == env["LOGNAME"] == "user" and env["SHELL"] == "/bin/bash"


def test_no_descriptors_left_is_125_and_leaks_none() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = sorted(os.listdir("/proc/self/fd"))
    process.find_user(OWN.pw_name)
    for spare in (1, 3, 5):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + spare, hard))
        try:
            with pytest.raises(CannotStart) as caught:
                process.start(Command(OWN.pw_name, command="true"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.status == 125
        assert sorted(os.listdir("/proc/self/fd")) == before


EARLY = """
import asyncio, os
from cloison.qrexec import one_socket, process
from cloison.wire.qrexec import Command
def run(**options):
    started = process.start(Command("", command="kill -USR1 $QREXEC_AGENT_PID"), **options)
    started.process.wait()
    started.close()
async def in_a_loop():
    run(quiet=True)
    assert one_socket.signalled()
    run()
ROUND
print("lives")
"""


@pytest.mark.parametrize("order", [
    "run(quiet=True)", "asyncio.run(in_a_loop())", "run(); asyncio.run(in_a_loop()); run(quiet=True)",
])
def test_a_program_that_signals_at_once_ends_nobody(order: str) -> None:
    """Whoever is told our process id may use it before anything else of its call has begun (reference/qrexec.md 7.4)."""
    program = [sys.executable, "-c", EARLY.replace("ROUND", order)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr
