"""A qube's private volume: which paths it keeps, copied once and never half; in a throw-away system where it has to mount."""
from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from tests.guest.inside import inside

from cloison.guest.volumes import copy_tree

# -- bind-dirs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "paths"), [
    ("", []),
    ("binds+=( '/etc/foo' )", ["/etc/foo"]),
    ("binds=( '/etc/foo' )", ["/etc/foo"]),
    ('binds+=( "/etc/a b" /etc/c \'/etc/d\' )', ["/etc/a b", "/etc/c", "/etc/d"]),
    ("binds+=( '/a'\n  '/b'\n)\nbinds+=( '/c' )", ["/a", "/b", "/c"]),
    ("# binds+=( '/etc/foo' )\nbinds+=( '/etc/bar' )", ["/etc/bar"]),
    ("binds+=( )", []),
    ("binds+=( relative ../up /etc/../up '' )", []),
    ("binds+=( $(reboot) `id` )", []),
    ("other=( '/etc/foo' )", []),
    ("binds+=( '/unclosed )", []),
])
def test_bind_dirs_are_read_and_not_run(text: str, paths: list[str]) -> None:
    assert inside(f"put('/etc/qubes-bind-dirs.d/a.conf', {text!r})\nresult = bind_dirs()") == paths


def test_bind_dirs_in_the_order_of_folders_and_names() -> None:
    assert inside("""
put('/rw/config/qubes-bind-dirs.d/1.conf', "binds+=( '/from/rw' )")
put('/etc/qubes-bind-dirs.d/2.conf', "binds+=( '/from/etc2' )")
put('/etc/qubes-bind-dirs.d/1.conf', "binds+=( '/from/etc1' )")
put('/etc/qubes-bind-dirs.d/0.disabled', "binds+=( '/no' )")
put('/etc/qubes-bind-dirs.d/3.conf', "\\xff\\n")
result = bind_dirs()
""") == ["/from/etc1", "/from/etc2", "/from/rw"]


def test_bound_file_keeps_what_is_written_to_it() -> None:
    assert inside("""
put('/etc/app/settings', 'of the template', 0o640)
bind('/etc/app/settings')
put('/etc/app/settings', 'mine', 0o640)
result = [get('/rw/bind-dirs/etc/app/settings'), oct(os.stat('/rw/bind-dirs/etc/app/settings').st_mode & 0o777)]
libc.unmount('/etc/app/settings')
result.append(get('/etc/app/settings'))
bind('/etc/app/settings')
result.append(get('/etc/app/settings'))
""") == ["mine", "0o640", "of the template", "mine"]


@pytest.mark.parametrize(("path", "kept"), [
    ("/etc/folder", "/rw/bind-dirs/etc/folder"), ("/home/user/x", "/rw/home/user/x"), ("/var/local/x", "/rw/bind-dirs/var/local/x"),
])
def test_where_a_bound_folder_is_kept(path: str, kept: str) -> None:
    assert inside(f"""
put('{path}/file', 'x')
bind('{path}')
put('{path}/new', 'y')
result = sorted(os.listdir('{kept}'))
""") == ["file", "new"]


def test_bound_link_keeps_what_it_points_to() -> None:
    assert inside("""
put('/var/real/file', 'x')
os.makedirs('/etc/deep')
os.symlink('../../var/real', '/etc/deep/link')
os.symlink('deep/link', '/etc/first')
bind('/etc/first')
put('/etc/first/new', 'y')
result = [sorted(os.listdir('/rw/bind-dirs/var/real')), sorted(os.listdir('/rw')), os.path.islink('/etc/first')]
""") == [["file", "new"], ["bind-dirs"], True]


def test_bound_path_that_is_nowhere_yet() -> None:
    assert inside("bind('/etc/nothing/here')\nresult = [os.listdir('/rw'), os.path.exists('/etc/nothing')]") == [[], False]


def test_kept_path_that_the_template_lacks_now() -> None:
    assert inside("""
put('/rw/bind-dirs/etc/app/file', 'kept')
put('/rw/bind-dirs/srv/only', 'kept too')
bind('/etc/app')
result = get('/etc/app/file')
""") == "kept"


def test_half_copy_of_a_killed_start_is_not_taken_for_one() -> None:
    assert inside("""
put('/etc/app/a', '1')
put('/etc/app/b', '2')
put('/rw/bind-dirs/etc/app.new/a', 'half')
bind('/etc/app')
result = [sorted(os.listdir('/rw/bind-dirs/etc')), sorted(os.listdir('/etc/app')), get('/etc/app/a')]
""") == [["app"], ["a", "b"], "1"]


# -- an empty private volume -------------------------------------------------------------------------------------------------


def test_first_use_lays_out_the_volume_once() -> None:
    assert inside("""
tmpfs('/usr/local')
put('/home/user/.bashrc', 'x', 0o600)
put('/usr/local/bin/tool', 'y', 0o755)
volumes.first_use()
put('/rw/home/user/.bashrc', 'mine', 0o600)
put('/rw/config/rc.local', 'mine')
volumes.first_use()
result = [sorted(os.listdir('/rw')), get('/rw/home/user/.bashrc'), get('/rw/config/rc.local'), get('/rw/usrlocal/bin/tool'),
          oct(os.stat('/rw/usrlocal/bin/tool').st_mode & 0o7777)]
""") == [["bind-dirs", "config", "home", "usrlocal"], "mine", "mine", "y", "0o755"]


def test_first_use_after_one_that_was_killed() -> None:
    assert inside("""
tmpfs('/usr/local')
put('/home/user/a', '1')
put('/rw/home.new/user/half', '')
put('/rw/usrlocal.new/half', '')
put('/rw/config.new/rc.local', 'ha')
volumes.first_use()
result = [sorted(os.listdir('/rw')), os.listdir('/rw/home/user'), os.listdir('/rw/usrlocal'),
          get('/rw/config/rc.local') == RC_LOCAL]
""") == [["bind-dirs", "config", "home", "usrlocal"], ["a"], [], True]


def test_rc_local_is_not_executable_at_first() -> None:
    assert inside("tmpfs('/usr/local')\nvolumes.first_use()\nresult = os.access(RC_LOCAL_PATH, os.X_OK)") is False


# -- copying -------------------------------------------------------------------------------------------------------------------


def test_copy_keeps_modes_links_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(b"\0" * 70_000)
    (source / "folder" / "file").chmod(0o4751)
    (source / "dangling").symlink_to("/nowhere/at/all")
    (source / "to-folder").symlink_to("folder")
    (source / "empty").mkdir(mode=0o700)
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.chdir(source)      # its name would be too long
        sock.bind("socket")
        copy_tree(str(source), str(target))
    assert sorted(os.listdir(target)) == ["dangling", "empty", "folder", "to-folder"]
    assert (target / "folder" / "file").read_bytes() == bytes(70_000)
    assert stat.S_IMODE((target / "folder" / "file").stat().st_mode) == 0o4751
    assert stat.S_IMODE((target / "empty").stat().st_mode) == 0o700
    assert os.readlink(target / "dangling") == "/nowhere/at/all" and os.readlink(target / "to-folder") == "folder"


def test_copy_of_a_single_link_and_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "file").write_text("x")
    copy_tree(str(tmp_path / "link"), str(tmp_path / "link2"))
    copy_tree(str(tmp_path / "file"), str(tmp_path / "file2"))
    assert os.readlink(tmp_path / "link2") == "gone" and (tmp_path / "file2").read_text() == "x"


def test_a_disks_size_is_waited_for_until_the_kernel_announces_it() -> None:
    """Nothing is announced here, so only what is known already comes; and what never comes is told."""
    assert inside("""
import cloison.guest.volumes as volumes
sizes = [5]
volumes._size = lambda path: sizes[0]
volumes.SIZE_SECONDS = 0.0
result = [await_size('/dev/vdz', lambda now: now == 5), await_size('/dev/vdz', lambda now: now >= 6)]
""") == [True, False]
