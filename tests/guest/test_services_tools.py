"""Commands of a qube: what they call, what they say, what they end with."""
from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.guest.programs import Bin
from tests.patience import PATIENCE

TOOLS = "cloison.guest.tools."


@pytest.fixture
def bin(tmp_path: Path) -> Bin:
    return Bin(tmp_path)


def receiver(bin: Bin, source: str = "work") -> str:
    return bin.service("cloison.qrexec.filecopy.unpacker", QREXEC_REMOTE_DOMAIN=source)


# -- qvm-copy and its kin --------------------------------------------------------------------------------------------------


def test_copy_sends_to_what_the_host_chooses(bin: Bin) -> None:
    (bin.home / "f").write_text("content")
    result = bin.run(TOOLS + "copy", "qvm-copy", "f", SERVICE=receiver(bin))
    assert result.returncode == 0, result.stderr
    assert bin.calls() == [["--use-stdin-socket", "--", "@default", "qubes.Filecopy"]]
    assert (bin.home / "QubesIncoming/work/f").read_text() == "content"
    assert re.fullmatch(rb"sent 0\.0 of 0\.0 KiB, [0-9.]+ KiB/s  \n", result.stderr)
    assert (bin.home / "f").exists()


def test_copy_to_vm_names_the_target(bin: Bin) -> None:
    (bin.home / "f").touch()
    result = bin.run(TOOLS + "copy", "qvm-copy-to-vm", "--without-progress", "other", "f/", SERVICE=receiver(bin))
    assert result.returncode == 0
    assert bin.calls() == [["--use-stdin-socket", "--", "other", "qubes.Filecopy"]]
    assert b"the host may ask for the destination again" in result.stderr


def test_move_removes_what_has_arrived(bin: Bin) -> None:
    (bin.home / "d/e").mkdir(parents=True)
    (bin.home / "d/e/f").write_text("content")
    assert bin.run(TOOLS + "copy", "qvm-move", "d/", SERVICE=receiver(bin)).returncode == 0
    assert not (bin.home / "d").exists()
    assert (bin.home / "QubesIncoming/work/d/e/f").read_text() == "content"


def test_move_keeps_what_was_refused_or_not_all_copied(bin: Bin) -> None:
    (bin.home / "f").write_text("content")
    refused = bin.run(TOOLS + "copy", "qvm-move", "f")
    assert (refused.returncode, refused.stderr) == (126, b"Request refused\n")
    (bin.home / "QubesIncoming/work").mkdir(parents=True)
    (bin.home / "QubesIncoming/work/f").touch()
    assert bin.run(TOOLS + "copy", "qvm-move", "f", SERVICE=receiver(bin)).returncode == 17
    (bin.home / "d").mkdir()
    os.mkfifo(bin.home / "d/pipe")
    partly = bin.run(TOOLS + "copy", "qvm-move", "d", SERVICE=receiver(bin))
    assert (partly.returncode, b"the originals stay" in partly.stderr) == (1, True)
    assert (bin.home / "f").exists()
    assert (bin.home / "d/pipe").exists()


def test_a_receiver_that_is_gone_is_told_of(bin: Bin) -> None:
    """The other qube was killed: the client can say no more than that it lost the channel."""
    (bin.home / "f").write_bytes(bytes(4 << 20))
    lost = bin.run(TOOLS + "copy", "qvm-move", "--without-progress", "f", SERVICE=bin.add("lost", "#!/bin/sh\nexit 255\n"))
    assert lost.returncode == 255
    assert lost.stderr == b"qvm-move: error: the other qube or its service ended before all was there\n"
    assert (bin.home / "f").exists()


def test_unsafe_names_ask_for_the_argument_that_allows_them(bin: Bin) -> None:
    (bin.home / "d").mkdir()
    (bin.home / "d/a\x1bb").touch()
    result = bin.run(TOOLS + "copy", "qvm-copy", "d")
    assert bin.calls() == [["--use-stdin-socket", "--", "@default", "qubes.Filecopy+allow-all-names"]]
    assert b'"a\\x1bb" is not safe to show' in result.stderr


def test_what_the_receiver_would_refuse_is_not_even_asked_for(bin: Bin) -> None:
    (bin.home / "l").symlink_to("f")
    (bin.home / "f").touch()
    result = bin.run(TOOLS + "copy", "qvm-copy", "l")
    assert (result.returncode, bin.calls()) == (1, [])
    assert b"--ignore-symlinks" in result.stderr
    assert bin.run(TOOLS + "copy", "qvm-copy", "--ignore-symlinks", "l", "f", SERVICE=receiver(bin)).returncode == 0
    assert os.listdir(bin.home / "QubesIncoming/work") == ["f"]


@pytest.mark.parametrize(("name", "arguments", "status"), [
    ("qvm-copy", [], 1), ("qvm-copy", ["--nonsense", "f"], 1), ("qvm-copy-to-vm", ["only"], 1), ("qvm-move", ["--help"], 0),
    ("qvm-copy", ["-h"], 0), ("qvm-copy", ["missing"], 1), ("qvm-other", ["f"], 1)])
def test_usage(bin: Bin, name: str, arguments: list[str], status: int) -> None:
    result = bin.run(TOOLS + "copy", name, *arguments)
    assert (result.returncode, bin.calls()) == (status, [])
    assert result.stdout.startswith(b"usage: " + name.encode()) or result.stderr


# -- the others ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "called"), [
    (["work", "echo", "it's", "$(x)"],
     ["--prefix-data=exec bash -c 'echo it'\\''s $(x)' || exit 127\n", "--", "work", "qubes.VMShell"]),
    (["--dispvm", "true"], ["--prefix-data=exec bash -c 'true' || exit 127\n", "--", "@dispvm", "qubes.VMShell+WaitForSession"]),
    (["-d", "-t", "true"], ["--prefix-data=exec bash -c 'true' || exit 127\n", "--", "@dispvm", "qubes.VMShell"]),
    (["$dispvm:x", "true"],
     ["--prefix-data=exec bash -c 'true' || exit 127\n", "--", "@dispvm:x", "qubes.VMShell+WaitForSession"])])
def test_run_vm(bin: Bin, arguments: list[str], called: list[str]) -> None:
    assert bin.run(TOOLS + "run_vm", "qvm-run-vm", *arguments).returncode == 126
    assert bin.calls() == [called]


@pytest.mark.parametrize(("arguments", "status"), [([], 1), (["work"], 1), (["-d"], 1), (["-x", "work", "true"], 1), (["-h"], 0)])
def test_run_vm_usage(bin: Bin, arguments: list[str], status: int) -> None:
    assert bin.run(TOOLS + "run_vm", "qvm-run-vm", *arguments).returncode == status
    assert bin.calls() == []


def test_run_vm_quotes_for_a_shell(bin: Bin) -> None:
    echo = bin.add("echo-input", "#!/bin/sh\nexec cat\n")
    bin.run(TOOLS + "run_vm", "qvm-run-vm", "work", "a 'b' \\ \"c\"", SERVICE=echo)
    prefix = bin.calls()[0][0].removeprefix("--prefix-data=")
    said = subprocess.run(["bash", "-c", prefix.replace("exec bash -c", "printf %s").replace(" || exit 127", "")],
                          capture_output=True, check=True).stdout
    assert said == b"a 'b' \\ \"c\""


@pytest.mark.parametrize("argument", ["", "80", ":80", "a:b", "::", "::0", "::65536", "::8x", "x:work:80", "-1:work:80", "::٣"])
def test_connect_tcp_refuses_what_is_no_port(bin: Bin, argument: str) -> None:
    assert bin.run(TOOLS + "connect_tcp", "qvm-connect-tcp", argument).returncode == 1


def test_connect_tcp_carries_connections(bin: Bin) -> None:
    from cloison.guest.tools import connect_tcp

    service = bin.add("upper", "#!/bin/sh\nexec tr a-z A-Z\n")
    environment = bin.environment(SERVICE=service)
    listener = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(environment)
            connect_tcp.serve(listener, "work", "qubes.ConnectTCP+80")
        finally:
            os._exit(1)
    try:
        for _ in range(3):
            with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as connection:
                connection.sendall(b"hello")
                connection.shutdown(socket.SHUT_WR)
                assert connection.makefile("rb").read() == b"HELLO"
        assert bin.calls() == [["--use-stdin-socket", "--", "work", "qubes.ConnectTCP+80"]] * 3
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        listener.close()


@pytest.mark.parametrize("said", [b"", b"x", b"1970-01-01T00:00:00+00:00\n", b"y" * 100])
def test_sync_clock_believes_no_nonsense(bin: Bin, said: bytes, tmp_path: Path) -> None:
    (tmp_path / "said").write_bytes(said)
    service = bin.add("clock", f"#!/bin/sh\nexec cat {tmp_path}/said\n")
    result = bin.run(TOOLS + "sync_clock", "qvm-sync-clock", SERVICE=service)
    assert (result.returncode, b"the clock stays as it is" in result.stderr) == (1, True)
    assert bin.calls() == [["--use-stdin-socket", "--", "@default", "qubes.GetDate+nanoseconds"]]
    assert bin.run(TOOLS + "sync_clock", "qvm-sync-clock").returncode == 126


# -- opening elsewhere -----------------------------------------------------------------------------------------------------


def opener(bin: Bin, text: str) -> str:
    """A qubes.OpenInVM whose person does `text` to the file $1."""
    bin.add("qubes-open", f"#!/bin/sh\n{text}\n")
    return bin.service("cloison.guest.rpc.open_in_vm", QREXEC_REMOTE_DOMAIN="work")


def test_what_was_changed_comes_back(bin: Bin) -> None:
    (bin.home / "f.txt").write_text("old")
    (bin.home / "f.txt").chmod(0o640)
    result = bin.run(TOOLS + "open_in_vm", "qvm-open-in-vm", "other", "f.txt", SERVICE=opener(bin, 'echo new > "$1"'))
    assert (result.returncode, result.stderr) == (0, b"")
    assert (bin.home / "f.txt").read_text() == "new\n"
    assert (bin.home / "f.txt").stat().st_mode & 0o777 == 0o640
    assert bin.calls() == [["--use-stdin-socket", "--", "other", "qubes.OpenInVM"]]
    assert sorted(os.listdir(bin.home)) == ["f.txt"]


@pytest.mark.parametrize(("options", "does"), [
    ([], "true"), (["--view-only"], 'chmod 600 "$1"; echo new > "$1"'), ([], "exit 3"), ([], 'echo new > "$1"; exit 3')])
def test_what_stays_as_it_was(bin: Bin, options: list[str], does: str) -> None:
    (bin.home / "f").write_text("old")
    result = bin.run(TOOLS + "open_in_vm", "qvm-open-in-dvm", *options, "f", SERVICE=opener(bin, does))
    assert result.returncode == (3 if "exit 3" in does else 0)
    assert (bin.home / "f").read_text() == "old"
    assert bin.calls()[0][2:] == ["@dispvm", "qubes.OpenInVM"]


def test_a_receiver_that_writes_back_and_fails_changes_nothing(bin: Bin) -> None:
    (bin.home / "f").write_text("old")
    service = bin.add("evil", "#!/bin/sh\ncat > /dev/null; echo part; exit 5\n")
    result = bin.run(TOOLS + "open_in_vm", "qvm-open-in-vm", "other", "f", SERVICE=service)
    assert (result.returncode, (bin.home / "f").read_text(), os.listdir(bin.home)) == (5, "old", ["f"])


def test_an_address_goes_to_another_service(bin: Bin, tmp_path: Path) -> None:
    bin.add("qubes-open", f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    service = bin.service("cloison.guest.rpc.open_in_vm", "main_url")
    assert bin.run(TOOLS + "open_in_vm", "qvm-open-in-vm", "other", "https://a.b/?c=d", SERVICE=service).returncode == 0
    assert (tmp_path / "opened").read_text() == "https://a.b/?c=d\n"
    assert bin.calls()[0][2:] == ["other", "qubes.OpenURL"]
    assert bin.run(TOOLS + "open_in_vm", "qvm-open-in-vm", "other", "gopher://a", SERVICE=service).returncode == 1


@pytest.mark.parametrize(("name", "arguments"), [
    ("qvm-open-in-vm", ["f"]), ("qvm-open-in-vm", []), ("qvm-open-in-dvm", []), ("qvm-open-in-dvm", ["a", "b"]),
    ("qvm-open-in-vm", ["x", "missing"]), ("qvm-open-in-vm", ["x", "."]), ("qvm-open-in-vm", ["--odd", "x", "f"])])
def test_open_usage(bin: Bin, name: str, arguments: list[str]) -> None:
    result = bin.run(TOOLS + "open_in_vm", name, *arguments)
    assert (result.returncode, bin.calls()) == (2, [])
    assert arguments != ["x", "."] or b"is a folder" in result.stderr


def test_a_disposable_does_not_open_in_disposables_for_others(bin: Bin) -> None:
    (bin.home / "f").touch()
    result = bin.run(TOOLS + "open_in_vm", "qvm-open-in-dvm", "f", QREXEC_SERVICE_FULL_NAME="qubes.OpenInVM+")
    assert (result.returncode, bin.calls()) == (1, [])


# -- whatever is closed, full or missing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [">&-", "<&- >&-", ">/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["", "--help", "x y"])
@pytest.mark.parametrize("name", ["copy", "connect_tcp", "open_in_vm", "qubesdb", "run_vm", "sync_clock"])
def test_no_tool_prints_a_traceback(tmp_path: Path, name: str, words: str, streams: str) -> None:
    prog = {"copy": "qvm-copy", "qubesdb": "qubesdb-read"}.get(name, name)
    code = f"import sys; from {TOOLS}{name} import main; sys.exit(main([{prog!r}, *sys.argv[1:]]))"
    argv = ["/bin/sh", "-c", f'exec "$0" -c "$1" {words} {streams}', sys.executable, code]
    done = subprocess.run(argv, check=False, timeout=PATIENCE, env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr and 0 <= done.returncode < 120, done
