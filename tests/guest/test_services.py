"""Services of a qube, by their standard streams: what a caller may make them do."""
from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import syslog
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.guest.programs import SOURCE, Bin, Result
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.guest.rpc import desktop, image, log, stdin
from cloison.wire import clock, opening
from cloison.wire import filecopy as wire

RPC = "cloison.guest.rpc."
SERVICES = Path(SOURCE) / "cloison/guest/services"


@pytest.fixture
def bin(tmp_path: Path) -> Bin:
    return Bin(tmp_path)


def script(bin: Bin, name: str, *arguments: str, data: bytes = b"") -> Result:
    """A service that is a shell script."""
    return subprocess.run(["sh", str(SERVICES / name), *arguments], input=data, capture_output=True, check=False,
                          env=bin.environment(USER="user"), timeout=PATIENCE)


# -- the scripts -----------------------------------------------------------------------------------------------------------


def test_every_service_has_its_interpreter() -> None:
    for path in SERVICES.iterdir():
        assert path.read_text().split("\n")[0] in ("#!/bin/sh", "#!/usr/bin/python3 -ISE", "#!/usr/bin/python3 -Es"), path


@pytest.mark.parametrize(("argument", "shape"), [("", rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\n"),
                                                 ("nanoseconds", rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{9}\+00:00\n")])
def test_get_date(bin: Bin, argument: str, shape: bytes) -> None:
    said = script(bin, "qubes.GetDate", *([argument] if argument else [])).stdout
    assert re.fullmatch(shape, said)
    assert clock.parse(said)


def test_filecopy_knows_one_argument(bin: Bin) -> None:
    assert script(bin, "qubes.Filecopy", "--allow-unsafe-symlinks").returncode == 1
    assert b"not this" in script(bin, "qubes.Filecopy", "x").stderr


@pytest.mark.parametrize("device", [b"", b"../../x", b"00:1f.8", b"00:1f.3/x", b"00:1F.3 ", b"0000:00:1f.3"])
def test_detach_pci_device_takes_an_address_only(bin: Bin, device: bytes) -> None:
    assert script(bin, "qubes.DetachPciDevice", data=device + b"\n").returncode == 1


def test_wait_for_session_takes_no_argument(bin: Bin) -> None:
    assert script(bin, "qubes.WaitForSession", data=b"user\n").returncode == 0
    assert script(bin, "qubes.WaitForSession", "x", data=b"user\n").returncode == 1
    for odd in (b"../user\n", b".\n", b"a/b\n"):
        assert script(bin, "qubes.WaitForSession", data=odd).returncode == 1


def test_wait_for_session_ends_when_that_user_has_one(tmp_path: Path) -> None:
    code = (f"import sys; sys.path.insert(0, {SOURCE!r}); from cloison.guest.rpc import wait_for_session as w; "
            f"print('waits', flush=True); sys.exit(w.main(['', 'work'], {str(tmp_path)!r}))")
    waiting = subprocess.Popen([sys.executable, "-ISEc", code], stdout=subprocess.PIPE)
    with waiting:
        assert waiting.stdout is not None and waiting.stdout.readline() == b"waits\n"
        (tmp_path / "other").touch()
        assert waiting.poll() is None
        (tmp_path / "work").touch()
        assert waiting.wait(PATIENCE) == 0


# -- qubes.SyncNtpClock ----------------------------------------------------------------------------------------------------


def time_programs(bin: Bin, on: str) -> None:
    """`systemctl` says that this unit is on, and each program notes its words and succeeds."""
    bin.add("systemctl", f'#!/bin/sh\necho "systemctl $*" >> "$CALLS"\n[ "$2" != is-enabled ] || [ "$3" = {on}.service ]\n')
    for name in ("chronyc", "timeout", "rm"):
        bin.add(name, f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n')


@pytest.mark.parametrize(("on", "last"), [
    ("chrony", "chronyc makestep"), ("systemd-timesyncd", "timeout 30 /usr/lib/systemd/systemd-time-wait-sync"),
])
def test_sync_ntp_clock_asks_what_keeps_the_time_here(bin: Bin, on: str, last: str) -> None:
    time_programs(bin, on)
    assert script(bin, "qubes.SyncNtpClock").returncode == 0
    assert bin.noted().splitlines()[-1] == last


def test_sync_ntp_clock_fails_where_nothing_keeps_the_time(bin: Bin) -> None:
    time_programs(bin, "none")
    result = script(bin, "qubes.SyncNtpClock")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"neither chrony nor systemd-timesyncd" in result.stderr


def test_sync_ntp_clock_fails_when_no_server_answers(bin: Bin) -> None:
    time_programs(bin, "chrony")
    bin.add("chronyc", "#!/bin/sh\n[ $1 != waitsync ]\n")
    assert script(bin, "qubes.SyncNtpClock").returncode == 1


# -- reading ---------------------------------------------------------------------------------------------------------------


def test_lines_are_bounded_and_nothing_behind_them_is_taken() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"first\nsecond\n" + b"x" * 11)
    os.close(writer)
    assert stdin.read_line(5, reader) == b"first"
    assert stdin.read_line(6, reader) == b"second"
    with pytest.raises(PeerError):
        stdin.read_line(10, reader)
    os.close(reader)


# -- qubes.SetDateTime -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\n", b"1970-01-01T00:00:00+00:00\n", b"now\n", b"2026-11-21T06:00:00; reboot\n",
                                  b"x" * 1000])
def test_set_date_time_takes_times_only(bin: Bin, data: bytes) -> None:
    assert bin.run(RPC + "set_date_time", "qubes.SetDateTime", data=data).returncode == 1


def test_set_date_time_leaves_a_right_clock_alone(bin: Bin) -> None:
    import time

    right = clock.encode(time.time_ns(), nanoseconds=True)
    assert bin.run(RPC + "set_date_time", "qubes.SetDateTime", data=right).returncode == 0


# -- qubes.OpenInVM, qubes.OpenURL -----------------------------------------------------------------------------------------


def opened(bin: Bin, name: bytes, content: bytes, *, view_only: bool = False, source: str = "work") -> Result:
    data = opening.encode_name(name, view_only=view_only) + content
    return bin.run(RPC + "open_in_vm", "qubes.OpenInVM", data=data, QREXEC_REMOTE_DOMAIN=source)


def test_open_in_vm_shows_the_file_and_sends_it_back_if_changed(bin: Bin, tmp_path: Path) -> None:
    noted = f'echo "$1" > {tmp_path}/path\nstat -c %a "$1" >> {tmp_path}/path\n'
    bin.add("qubes-open", f'#!/bin/sh\n{noted}cat "$1"; echo more >> "$1"\n')
    result = opened(bin, b"a b.txt", b"content")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"contentmore\n", b"content")
    path, mode = (tmp_path / "path").read_text().split()
    assert re.fullmatch(r"/tmp/work-[^/]+/a_b\.txt", path)
    assert mode == "600"
    assert not Path(path).parent.exists()


@pytest.mark.parametrize(("name", "asked"), [
    ("xvdi\n", ["wait --timeout=8 /dev/xvdi"]), ("../sda\n", []), ("", []), ("\n", []), ("xvdi x\n", []), ("-v\n", []),
])
def test_await_disk_asks_udev_for_a_name_and_nothing_else(bin: Bin, tmp_path: Path, name: str, asked: list[str]) -> None:
    bin.add("udevadm", f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n')
    environment = {"PATH": f"{bin.folder}:/usr/bin:/bin"}
    script = Path(SOURCE, "cloison/guest/services/cloison.AwaitDisk")
    done = subprocess.run(["/bin/sh", str(script)], input=name.encode(), env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) == bool(asked)
    assert ((tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []) == asked


VIEW = RPC + "text_view"


def test_without_windows_a_text_is_shown_in_the_callers_terminal(bin: Bin) -> None:
    """By OpenInVM itself: on standard error, and the file does not come back."""
    viewer = bin.service(VIEW)
    bin.add("qubes-open", f'#!/bin/sh\nexec {viewer} "$@"\n')
    result = opened(bin, b"a.txt", "naïve\r\n漢\x1b[31m\u202egpj.exe\tx".encode())
    assert (result.returncode, result.stdout) == (0, b"")
    lines = result.stderr.decode().split("\n")
    assert lines[0].startswith("-- a.txt, 28 bytes, shown by qube ")
    assert lines[1:] == ["naïve", "漢_[31m_gpj.exe\tx", "-- end", ""]


@pytest.mark.parametrize(("content", "shown"), [
    (b"", True), (b"x" * 65536, True), (b"x" * 65537, True), (b"x" * 65535 + "é".encode(), True),
    (b"x" * 60000 + b"\xff" * 9999, False),
    (b"\x7fELF\0", False), (b"\xff\xfe", False), (b"a\0", False), ("é".encode()[:1], False),
])
def test_what_is_no_text_gets_a_sentence(bin: Bin, tmp_path: Path, content: bytes, shown: bool) -> None:
    (tmp_path / "f").write_bytes(content)
    result = bin.run(VIEW, "text-view", str(tmp_path / "f"))
    assert result.stdout == b""
    assert len(result.stderr) < 65536 + 200
    if shown:
        assert result.returncode == 0
        assert (b"the rest, %d bytes" % (len(content) - 65536) in result.stderr) == (len(content) > 65536)
    else:
        assert result.returncode == 3
        assert b"f is no text and can't be shown in qube " in result.stderr


def test_an_address_gets_a_sentence(bin: Bin) -> None:
    result = bin.run(VIEW, "text-view", "https://example.org/")
    assert (result.returncode, result.stdout) == (3, b"")
    assert b"no windows yet" in result.stderr


@pytest.mark.parametrize(("display", "installed", "used"), [("", True, False), (":0", True, True), (":0", False, False)])
def test_windows_are_used_where_there_are_some(bin: Bin, tmp_path: Path, display: str, installed: bool, used: bool) -> None:
    """The script itself, with a text view of ours in its place."""
    viewer = bin.add("text-view", "#!/bin/sh\necho text\n")
    script = Path(SOURCE, "cloison/guest/files/usr/bin/qubes-open").read_text().replace("/usr/lib/qubes/text-view", viewer)
    if installed:
        bin.add("xdg-open", "#!/bin/sh\necho windows\n")
    environment = {"PATH": str(bin.folder), "DISPLAY": display}
    done = subprocess.run(["/bin/sh", bin.add("opener", script), "f"], env=environment, capture_output=True, check=True)
    assert done.stdout == (b"windows\n" if used else b"text\n")


def test_a_view_is_read_only_and_never_comes_back(bin: Bin, tmp_path: Path) -> None:
    bin.add("qubes-open", f'#!/bin/sh\nstat -c %a "$1" > {tmp_path}/mode\nchmod 600 "$1"; echo more >> "$1"\n')
    assert opened(bin, b"f", b"content", view_only=True).stdout == b""
    assert (tmp_path / "mode").read_text() == "400\n"


def test_an_unchanged_file_does_not_come_back(bin: Bin) -> None:
    bin.add("qubes-open", "#!/bin/sh\nexit 0\n")
    assert opened(bin, b"f", b"content").stdout == b""
    bin.add("qubes-open", '#!/bin/sh\necho more >> "$1"; exit 4\n')
    failed = opened(bin, b"f", b"content")
    assert (failed.returncode, failed.stdout) == (4, b"")


@pytest.mark.parametrize(("name", "source"), [(b"a/b", "work"), (b"", "work"), (b"f", "../work"), (b"f", ""), (b"f", "a b")])
def test_open_in_vm_refuses_odd_names(bin: Bin, name: bytes, source: str) -> None:
    bin.add("qubes-open", "#!/bin/sh\necho opened\n")
    result = opened(bin, name, b"", source=source)
    assert (result.returncode, result.stdout) == (1, b"")


def test_open_in_vm_needs_the_whole_name_field(bin: Bin) -> None:
    assert bin.run(RPC + "open_in_vm", "x", data=b"short", QREXEC_REMOTE_DOMAIN="work").returncode == 1


@pytest.mark.parametrize("line", [b"file:///etc/passwd\n", b"--help\n", b"\n", b"", b"http://a b\n", b"http://" + b"x" * 10_000])
def test_open_url_refuses_what_is_no_address(bin: Bin, line: bytes) -> None:
    bin.add("qubes-open", "#!/bin/sh\necho opened\n")
    result = bin.run(RPC + "open_in_vm", "qubes.OpenURL", call="main_url", data=line)
    assert (result.returncode, result.stdout) == (1, b"")


# -- menus -------------------------------------------------------------------------------------------------------------------

ENTRY = """\
[Desktop Entry]
Name=Editor
Exec=edit %F --title %c
Icon=edit
[Desktop Action New]
Name=New
Exec=evil
"""


@pytest.fixture
def applications(bin: Bin, tmp_path: Path) -> Path:
    folder = tmp_path / "data/applications"
    (folder / "sub").mkdir(parents=True)
    (folder / "edit.desktop").write_text(ENTRY)
    (folder / "sub/deep.desktop").write_text("[Desktop Entry]\nName=Deep\nExec=deep\n")
    (folder / "hidden.desktop").write_text("[Desktop Entry]\nName=Hidden\nExec=x\nNoDisplay=true\n")
    (folder / "saver.desktop").write_text("[Desktop Entry]\nName=S\nExec=x\nCategories=Screensaver;\n")
    (folder / "not.txt").write_text(ENTRY)
    return folder.parent


def where(applications: Path) -> dict[str, str]:
    return {"XDG_DATA_DIRS": str(applications), "QUBESDB_SOCKET": "/nowhere"}


def test_get_appmenus_lists_what_menus_show(bin: Bin, applications: Path) -> None:
    said = bin.run(RPC + "desktop", "qubes.GetAppmenus", call="main_list", **where(applications)).stdout
    assert said.decode().split("\n\n") == [
        "edit.desktop:Name=Editor\nedit.desktop:Exec=qubes-desktop-run edit.desktop\nedit.desktop:Icon=edit",
        "", "sub-deep.desktop:Name=Deep\nsub-deep.desktop:Exec=qubes-desktop-run sub-deep.desktop", ""]


def test_what_get_appmenus_says_the_host_understands(bin: Bin, applications: Path) -> None:
    from cloison.wire import appmenus

    said = bin.run(RPC + "desktop", "qubes.GetAppmenus", call="main_list", **where(applications)).stdout
    assert set(appmenus.parse(said)) == {"edit.desktop", "sub-deep.desktop"}


def test_start_app_becomes_the_program(bin: Bin, applications: Path) -> None:
    bin.add("edit", '#!/bin/sh\nprintf "%s|" "$@"; exit 9\n')
    result = bin.run(RPC + "desktop", "qubes.StartApp", "edit", call="main_start", **where(applications))
    assert (result.returncode, result.stdout) == (9, b"--title|Editor|")


@pytest.mark.parametrize("arguments", [[], [""], ["missing"], ["../edit"], ["sub/deep"], ["a", "b"]])
def test_start_app_starts_only_what_is_listed(bin: Bin, applications: Path, arguments: list[str]) -> None:
    result = bin.run(RPC + "desktop", "qubes.StartApp", *arguments, call="main_start", **where(applications))
    assert result.returncode == 1


@given(st.text(max_size=80))
def test_exec_lines_are_total(text: str) -> None:
    try:
        words = desktop.command(text, "title", "/path")
    except ValueError:
        return
    assert words


# -- qubes.Log -----------------------------------------------------------------------------------------------------------------


def logged(data: bytes) -> tuple[list[tuple[int, str]], bytes]:
    """What a caller's bytes become: lines of the log, and the answers."""
    ours, theirs = socket.socketpair()
    lines: list[tuple[int, str]] = []
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        log.serve(theirs.fileno(), theirs.fileno(), lambda severity, text: lines.append((severity, text)))
        theirs.shutdown(socket.SHUT_WR)
        return lines, ours.makefile("rb").read()


def test_each_line_is_logged_and_answered() -> None:
    assert logged(b"one\n<3>two\n\n<15>x\nlast") == (
        [(syslog.LOG_INFO, "one"), (3, "two"), (syslog.LOG_INFO, ""), (7, "x"), (syslog.LOG_INFO, "last")], b"OK\n" * 6)


@pytest.mark.parametrize(("length", "text"), [(4096, "x" * 4096), (4097, "x" * 4096 + "..."), (50_000, "x" * 4096 + "...")])
def test_long_lines_are_cut(length: int, text: str) -> None:
    assert logged(b"x" * length + b"\nnext\n")[0] == [(syslog.LOG_INFO, text), (syslog.LOG_INFO, "next")]


def test_qsb_087_nothing_in_a_line_can_drive_a_terminal() -> None:
    assert logged(b"a\x1b[2J\r\xff\x00b \xe2\x80\xae\n")[0] == [(syslog.LOG_INFO, "a_[2J___b _")]


@given(st.binary(max_size=300))
def test_any_bytes_become_printable_lines(data: bytes) -> None:
    lines, answers = logged(data)
    assert answers == b"OK\n" * (len(lines) + 1)
    assert all(text.isprintable() and 0 <= severity <= 7 for severity, text in lines)


# -- backups -------------------------------------------------------------------------------------------------------------------


def test_backup_into_a_folder(bin: Bin) -> None:
    (bin.home / "b").mkdir()
    data = os.urandom(300_000)
    place = os.fsencode(bin.home / "b")
    assert bin.run(RPC + "backup", "qubes.Backup", call="main_backup", data=place + b"\n" + data).returncode == 0
    [made] = (bin.home / "b").iterdir()
    assert re.fullmatch(r"qubes-backup-\d{4}-\d\d-\d\dT\d{6}", made.name)
    assert (made.read_bytes(), made.stat().st_mode & 0o777) == (data, 0o600)


def test_backup_into_a_command_without_a_shell(bin: Bin, tmp_path: Path) -> None:
    bin.add("keep", f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/words; cat > {tmp_path}/kept\n')
    assert bin.run(RPC + "backup", "qubes.Backup", call="main_backup", data=b"keep 'a b' $(id) ;x\ncontent").returncode == 0
    assert (tmp_path / "words").read_text() == "a b|$(id)|;x|"
    assert (tmp_path / "kept").read_bytes() == b"content"


@pytest.mark.parametrize("place", [b"", b"no-such-command x", b"'unfinished", b"\0"])
def test_backup_to_nowhere(bin: Bin, place: bytes) -> None:
    assert bin.run(RPC + "backup", "qubes.Backup", call="main_backup", data=place + b"\ncontent").returncode == 1


def archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in (("a/one", b"1" * 100_000), ("a/two", b"2"), ("b", b"3")):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o640, 1_700_000_000
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize(("wanted", "names"), [(b"", [b"a/one", b"a/two", b"b"]), (b"b", [b"b"]), (b"a/one b", [b"a/one", b"b"]),
                                               (b"a", [b"a/one", b"a/two"]), (b"on", [])])
@pytest.mark.parametrize("by_command", [False, True])
def test_restore_sends_the_wanted_parts(bin: Bin, wanted: bytes, names: list[bytes], by_command: bool) -> None:
    (bin.home / "archive").write_bytes(archive())
    place = b"cat archive" if by_command else os.fsencode(bin.home / "archive")
    got, status = restored(bin, "main_restore", place + b"\n" + wanted + b"\n")
    assert ([name for name, _ in got], status) == (names, 0)
    assert dict(got).get(b"a/one", b"1" * 100_000) == b"1" * 100_000


def restored(bin: Bin, call: str, data: bytes, *arguments: str) -> tuple[list[tuple[bytes, bytes]], int]:
    """Files that come, and the service's exit status; the stream is answered as a receiver does."""
    ours, theirs = socket.socketpair()
    files: list[tuple[bytes, bytes]] = []
    with ours, theirs:
        process = subprocess.Popen(bin.words(RPC + "backup", "qubes.Restore", arguments, call), stdin=theirs, stdout=theirs,
                                   stderr=subprocess.DEVNULL, cwd=bin.home, env=bin.environment())
        theirs.close()
        ours.sendall(data)
        decoder = wire.Decoder()
        while piece := _received(ours):
            decoder.feed(piece)
            while (event := decoder.next_event()) is not None:
                if isinstance(event, wire.Entry):
                    files.append((event.path, b""))
                elif isinstance(event, memoryview):
                    files[-1] = (files[-1][0], files[-1][1] + bytes(event))
                else:
                    ours.sendall(wire.Result(0, decoder.crc).encode())
                    ours.shutdown(socket.SHUT_WR)
        return files, process.wait(PATIENCE)


def _received(stream: socket.socket) -> bytes:
    try:
        return stream.recv(1 << 16)
    except ConnectionResetError:         # it ended without reading all
        return b""


def test_restore_by_id_while_the_place_is_registered(bin: Bin) -> None:
    (bin.home / "archive").write_bytes(archive())
    registering = subprocess.Popen(bin.words(RPC + "backup", "qubes.RegisterBackupLocation", [], "main_register"),
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=bin.environment())
    assert registering.stdin is not None and registering.stdout is not None
    registering.stdin.write(os.fsencode(bin.home / "archive") + b"\n")
    registering.stdin.flush()
    location = registering.stdout.readline().decode().strip()
    got, status = restored(bin, "main_restore_by_id", b"b\n", location)
    assert (got, status) == ([(b"b", b"3")], 0)
    registering.stdin.close()
    assert registering.wait(PATIENCE) == 0
    registering.stdout.close()
    assert restored(bin, "main_restore_by_id", b"b\n", location) == ([], 1)


@pytest.mark.parametrize("location", ["", "..", "../../etc/passwd", "0123456789ab", "x" * 12])
def test_no_such_location(bin: Bin, location: str) -> None:
    assert bin.run(RPC + "backup", "qubes.RestoreById", location, call="main_restore_by_id", data=b"\n").returncode == 1


# -- pictures ------------------------------------------------------------------------------------------------------------------

GM = f"""#!{sys.executable}
import sys
if "info:-" in sys.argv: print("2 1")
else: sys.stdout.buffer.write(b"RGBARGBA")
"""


def test_a_picture_as_pixels(bin: Bin) -> None:
    bin.add("gm", GM)
    (bin.home / "p.png").write_bytes(b"picture")
    for data in (os.fsencode(bin.home / "p.png") + b"\n", b"-\npicture", b"png:-\npicture"):
        assert bin.run(RPC + "image", "qubes.GetImageRGBA", data=data).stdout == b"2 1\nRGBARGBA"


@pytest.mark.parametrize("data", [b"", b"/nowhere\n", b"xdgicon:\n", b"xdgicon:../x\n", b"xdgicon:no-such-icon\n", b"x" * 5000])
def test_no_picture(bin: Bin, data: bytes) -> None:
    bin.add("gm", GM)
    result = bin.run(RPC + "image", "qubes.GetImageRGBA", data=data)
    assert (result.returncode, result.stdout) == (1, b"")


def test_icons_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "ICON_FOLDERS", (str(tmp_path),))
    place = tmp_path / "hicolor/48x48/apps"
    place.mkdir(parents=True)
    (place / "edit.png").write_bytes(b"small")
    assert image.find_icon("edit") == str(place / "edit.png")
    (place / "edit.svg").write_bytes(b"")
    assert image.find_icon("edit") == str(place / "edit.svg")


# -- qubes.ResizeDisk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"volatile\n", b"root/../x\n1\n", b"private\nmuch\n", b"private\n-1\n", b"x" * 1000,
                                  b"private\n" + b"9" * 1000])
def test_resize_disk_knows_two_volumes_and_sizes(bin: Bin, data: bytes) -> None:
    assert bin.run(RPC + "resize_disk", "qubes.ResizeDisk", data=data).returncode == 1
