"""Users' sessions in real qubes: what calls see of them, who is refused one, and what becomes of them."""
from __future__ import annotations

import pytest
from tests.boot.place import DVM, LIMIT, TEMPLATE, Place

pytestmark = pytest.mark.boot

# As a login of that Debian gives it, and not the agent's own.
FILES = b"1024" if TEMPLATE == "debian-12" else b"65536"
SEEN = 'echo "$XDG_RUNTIME_DIR $(stat -c %U:%a "$XDG_RUNTIME_DIR") $(ulimit -Sn) $(cat /proc/self/oom_score_adj)"'

PLAIN = ["HOME", "LANG", "LOGNAME", "PATH", "PWD", "QREXEC_AGENT_PID", "SHELL", "SHLVL", "USER", "_"]    # some are the shell's


def keeper(place: Place, user: str) -> str:
    """The process id of that user's."""
    return place.sh("work", f"pgrep -f 'session_keeper[.]py {user}'", user="root").decode().strip()


def test_calls_are_in_their_users_session(work: Place) -> None:
    assert work.sh("work", SEEN) == b"/run/user/1000 user:700 " + FILES + b" 0\n"
    assert work.sh("work", "loginctl --no-legend list-sessions | wc -l") == b"1\n"
    assert work.sh("work", "cat /proc/$QREXEC_AGENT_PID/oom_score_adj; ulimit -Sn", user="root") == b"-900\n" + FILES + b"\n"
    assert work.sh("work", "ls /run/cloison/sessions") == b"root\nuser\n"


@pytest.mark.parametrize("user", ["user", "root"])
def test_a_program_inherits_nothing_of_the_agents(work: Place, user: str) -> None:
    """Neither its place before others (nice -10) nor its shelter, no signal's handling, no descriptor, no variable."""
    assert work.sh("work", "nice; cat /proc/self/oom_score_adj", user=user) == b"0\n0\n"
    assert work.sh("work", "nice -n -5 nice 2>/dev/null") == b"0\n"                  # nor may it ask for one
    assert work.sh("work", "grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2 | sort -u", user=user) == b"0" * 16 + b"\n"
    assert work.sh("work", "exec ls /proc/self/fd", user=user) == b"0\n1\n2\n3\n"          # 3: the folder that ls reads
    assert work.sh("work", "env | cut -d= -f1 | grep -v ^XDG_ | sort", user=user).decode().split() == PLAIN
    assert b"-10\n" == work.sh("work", "ps -o ni= -p $QREXEC_AGENT_PID | tr -d ' '", user=user)


def test_so_are_those_of_a_disposable(work: Place) -> None:
    assert work.ok(["qvm-run", "-p", f"--dispvm={DVM}", SEEN]) == b"/run/user/1000 user:700 " + FILES + b" 0\n"


def test_another_users_session_begins_with_the_first_call_and_has_its_limits(work: Place) -> None:
    work.sh("work", "useradd -m bob; echo 'bob hard nofile 123' > /etc/security/limits.d/bob.conf", user="root")
    assert work.sh("work", "id -un; ulimit -n", user="bob") == b"bob\n123\n"
    assert work.sh("work", "ls /run/cloison/sessions", user="root") == b"bob\nroot\nuser\n"


def test_whom_pam_refuses_runs_nothing(work: Place) -> None:
    work.sh("work", "useradd -m -e 2000-01-01 gone", user="root")
    refused = work.run(["qvm-run", "-p", "--user", "gone", "work", "echo never"])
    assert (refused.returncode, refused.stdout) == (125, b"")
    assert work.sh("work", "echo on") == b"on\n"


def test_a_killed_keeper_is_replaced_and_running_calls_go_on(work: Place) -> None:
    call = work.popen(["qvm-run", "-p", "work", "echo up; cat"])
    assert call.stdout is not None and call.stdout.readline() == b"up\n"
    former = keeper(work, "user")
    work.sh("work", f"kill -9 {former}", user="root")
    assert work.sh("work", SEEN) == b"/run/user/1000 user:700 " + FILES + b" 0\n"
    assert keeper(work, "user") != former
    assert call.communicate(b"still\n", 60)[0] == b"still\n" and call.returncode == 0


def test_wait_for_session(work: Place) -> None:
    """It returns at once where there is a session, and else when there is one."""
    service = ["qvm-run", "-p", "--service", "work", "qubes.WaitForSession"]
    assert work.ok(service, b"user\n") == work.ok(service, b"root\n") == b""
    work.sh("work", "useradd -m bob", user="root")
    waiting = work.popen(service)
    assert waiting.stdin is not None
    waiting.stdin.write(b"bob\n")
    waiting.stdin.flush()
    assert waiting.poll() is None
    work.sh("work", "true", user="bob")
    assert waiting.wait(LIMIT) == 0
    waiting.communicate()
    work.sh("work", "mkdir -p /run/qubes/rpc-config; echo 'wait-for-session=1' > /run/qubes/rpc-config/qubes.VMShell", user="root")
    assert work.ok(["qvm-run", "-p", "--service", "work", "qubes.VMShell"], b"echo $XDG_RUNTIME_DIR\n") == b"/run/user/1000\n"


def test_the_fork_server_serves_the_calls_of_its_user(work: Place) -> None:
    work.sh("work", "FROM_SERVER=yes qrexec-fork-server < /dev/null > /dev/null 2>&1")
    assert work.sh("work", 'echo "$FROM_SERVER $XDG_RUNTIME_DIR"') == b"yes /run/user/1000\n"
    assert work.sh("work", 'echo "${FROM_SERVER-no}"', user="root") == b"no\n"
    assert work.run(["qvm-run", "-p", "work", "exit 7"]).returncode == 7


def test_a_users_own_units_run_where_the_service_is_on(work: Place) -> None:
    work.halt("work")
    work.ok(["qvm-features", "work", "service.user-manager", "1"])
    work.ok(["qvm-start", "work"])
    work.sh("work", "systemctl start user@1000.service", user="root")       # or waits for what the agent has begun
    work.sh("work", "mkdir -p .config/systemd/user && cat > .config/systemd/user/mine.service",
            b"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo as $(id -un) at $(nice) > ran'\nWorkingDirectory=%h\n")
    assert work.sh("work", "systemctl --user daemon-reload; systemctl --user start mine; cat ran") == b"as user at 0\n"
