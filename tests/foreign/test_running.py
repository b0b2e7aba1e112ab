"""A day's work of Qubes OS's own client with real qubes: start, run, pause, events, disposables, shutdown."""
from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from clients import Both

pytestmark = [pytest.mark.slow, pytest.mark.boot]


@pytest.fixture(scope="module")
def running(both: Both) -> Iterator[Both]:
    """Template debian-12, and AppVM work on it, which runs."""
    for result in (
        both.cloison("template", "build", "debian-12"),
        both.theirs("qvm-create", "--label", "red", "--template", "debian-12", "work"),
        both.theirs("qvm-start", "work"),
    ):
        assert result.returncode == 0, result.stderr
    yield both
    stopped = both.theirs("qvm-shutdown", "--wait", "--all")
    assert stopped.returncode == 0, stopped.stderr
    assert both.theirs("qvm-ls", "--raw-data", "-O", "name,state").stdout.count("Halted") == 2


# Exit status, output and errors of the command itself are the same.
RUNS = r"""
qvm-run -p work 'echo hello; exit 3'
qvm-run -p work -- sh -c 'echo "a  b"; echo oops >&2'
qvm-run -p -u root work 'id -u'
qvm-run -p work cat
qvm-run work false
qvm-run --service -p work qubes.GetDate+
qvm-run --service -p work no.Such
qvm-run -q -p work 'exit 77'
qvm-run --no-gui -p work 'printf "\033[31mx\a"'
qvm-run --filter-escape-chars -p work 'printf "\033[31mx\a"'
qvm-run --filter-escape-chars --color-output 32 -p work 'echo green'
qvm-run -p --color-output 31 work 'echo hi'
qvm-run -p --all 'echo x'
qvm-run --all true
qvm-run -p --no-shell work echo 'a  b'
qvm-run -p --localcmd 'echo local' work 'cat > /tmp/received'
qvm-run -p work 'cat /tmp/received'
qvm-run work --autostart true
qvm-start work
qvm-start --skip-if-running work
qvm-ls -O name,state,xid,memory,flags,ip
qvm-check --running work
"""


@pytest.mark.parametrize("line", RUNS.strip().splitlines())
def test_runs(running: Both, line: str) -> None:
    words = shlex.split(line)
    theirs, ours = running.theirs(*words, text="typed\n"), running.ours(*words, text="typed\n")
    assert "Traceback" not in theirs.stderr + ours.stderr
    if "GetDate" in line:
        assert theirs.stdout[:13] == ours.stdout[:13]      # the hour
    else:
        assert theirs.stdout == ours.stdout
    assert theirs.returncode == ours.returncode, (theirs.stderr, ours.stderr)


def test_pause_and_unpause(running: Both) -> None:
    assert running.theirs("qvm-pause", "work").returncode == 0
    assert running.ours("qvm-check", "-q", "--paused", "work").returncode == 0
    assert running.theirs("qvm-run", "--no-autostart", "-p", "work", "true").returncode != 0
    assert running.theirs("qvm-unpause", "work").returncode == 0
    assert running.theirs("qvm-run", "-p", "work", "echo again").stdout == "again\n"


def test_their_library_sees_events_as_they_happen(running: Both) -> None:
    program = """
import asyncio, qubesadmin, qubesadmin.events
app = qubesadmin.Qubes()
dispatcher, seen = qubesadmin.events.EventsDispatcher(app), []

def note(subject, event, **pairs):
    seen.append((str(subject), event, sorted(pairs)))
    if event == "connection-established":
        asyncio.get_running_loop().run_in_executor(None, act)
    if event == "domain-delete":
        task.cancel()

def act():
    app.add_new_vm("AppVM", "brief", "green", template="debian-12")
    app.domains["brief"].tags.add("seen")
    del app.domains["brief"]

async def main():
    global task
    dispatcher.add_handler("*", note)
    task = asyncio.create_task(dispatcher.listen_for_events())
    try:
        await task
    except asyncio.CancelledError:
        pass

asyncio.run(main())
for line in seen:
    print(line)
"""
    result = running.python(program)
    assert result.returncode == 0, result.stderr
    for expected in ("'connection-established'", "'domain-add', ['vm']", "'domain-tag-add:seen'", "'domain-delete', ['vm']"):
        assert expected in result.stdout, result.stdout


def test_a_volume_from_their_library(running: Both) -> None:
    """Data goes in through the service that their client runs, and is there when the qube starts."""
    program = """
import io, qubesadmin
app = qubesadmin.Qubes()
vm = app.add_new_vm("StandaloneVM", "stored", "gray")
vm.volumes["root"].import_data_with_size(io.BytesIO(b"x" * 4096), 4096)
print(vm.volumes["root"].size)
del app.domains["stored"]
"""
    result = running.python(program)
    assert (result.stdout, result.returncode) == ("4096\n", 0), result.stderr
