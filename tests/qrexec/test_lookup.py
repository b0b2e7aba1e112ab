"""Which file serves a call: found where, of what kind."""
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.qrexec.lookup import CannotStart, Executable, SocketService, TcpService, find, names


def service(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def status(name: str, argument: str | None, path: object) -> int:
    with pytest.raises(CannotStart) as caught:
        find(name, argument, str(path))
    return caught.value.status


@pytest.mark.parametrize(("present", "asked", "found"), [
    (["a/s"], ("s", None), "a/s"), (["b/s"], ("s", None), "b/s"), (["a/s", "b/s"], ("s", None), "a/s"),
    (["a/s", "b/s+x"], ("s", "x"), "b/s+x"), (["a/s", "b/s+"], ("s", None), "b/s+"), (["a/s", "b/s+"], ("s", ""), "b/s+"),
    (["a/s", "b/s+x"], ("s", "y"), "a/s"), (["a/s"], ("s", "x" * 300), "a/s"), (["a/s"], ("s", "../../bin/sh"), "a/s"),
])
def test_order_of_folders_and_names(tmp_path: Path, present: list[str], asked: tuple[str, str | None], found: str) -> None:
    for name in present:
        service(tmp_path / name)
    assert find(*asked, f"{tmp_path}/a:{tmp_path}/none:{tmp_path}/b") == Executable(str(tmp_path / found))


def test_what_is_there_but_unusable_ends_the_search(tmp_path: Path) -> None:
    service(tmp_path / "a" / "plain", 0o644)
    (tmp_path / "a" / "folder").mkdir()
    (tmp_path / "a" / "dangling").symlink_to("nowhere")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "a" / "broken+x").symlink_to("/dev/null/nowhere")
    service(tmp_path / "b" / "broken")
    for name, expected in {"plain": 125, "folder": 125, "loop": 125, "dangling": 127, "none": 127}.items():
        assert status(name, None, tmp_path / "a") == expected, name
    assert status("broken", "x", f"{tmp_path}/a:{tmp_path}/b") == 125
    assert status("s", None, tmp_path / "a" / "plain") == 125


def test_a_link_to_an_executable_serves(tmp_path: Path) -> None:
    service(tmp_path / ".hidden")
    (tmp_path / "s").symlink_to(".hidden")
    assert find("s", None, str(tmp_path)) == Executable(str(tmp_path / "s"))


def test_sockets_and_links_to_them(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))
        (tmp_path / "s+a").symlink_to("there")
        assert find("there", None, str(tmp_path)) == SocketService(str(tmp_path / "there"))
        assert find("s", "a", str(tmp_path)) == SocketService(str(tmp_path / "s+a"))


@pytest.mark.parametrize(("link", "argument", "found"), [
    ("/dev/tcp/127.0.0.1/80", None, ("127.0.0.1", 80)), ("/dev/tcp/127.0.0.1/80", "", ("127.0.0.1", 80)),
    ("/dev/tcp/127.0.0.1", "65535", ("127.0.0.1", 65535)), ("/dev/tcp", "127.0.0.1+8082", ("127.0.0.1", 8082)),
    ("/dev/tcp/", "127.0.0.1+0", ("127.0.0.1", 0)), ("/dev/tcp", "++1+22", ("::1", 22)), ("/dev/tcp/::1/22", None, ("::1", 22)),
    ("/dev/tcp/fe80::1%eth0/22", None, ("fe80::1%eth0", 22)),
])
def test_tcp_links(tmp_path: Path, link: str, argument: str | None, found: tuple[str, int]) -> None:
    (tmp_path / "s").symlink_to(link)
    assert find("s", argument, str(tmp_path)) == TcpService(*found)


@pytest.mark.parametrize(("link", "argument"), [
    ("/dev/tcp/127.0.0.1/80", "81"), ("/dev/tcp/127.0.0.1", None), ("/dev/tcp/127.0.0.1", "080"), ("/dev/tcp", None),
    ("/dev/tcp/127.0.0.1", "65536"), ("/dev/tcp/127.0.0.1", "-1"), ("/dev/tcp/127.0.0.1", "80 "), ("/dev/tcp", "127.0.0.1"),
    ("/dev/tcp", "localhost+80"), ("/dev/tcp", "__1+80"), ("/dev/tcp", "+80"), ("/dev/tcp/127.0.0.1/", None),
    ("/dev/tcp//80", None),
    ("/dev/tcp/127.0.0.1", "127.0.0.1+80"), ("/dev/tcp/1.2.3.4/80/90", None), ("/dev/tcp/127.0.0.1", "\u0664"),
])
def test_bad_tcp_links(tmp_path: Path, link: str, argument: str | None) -> None:
    (tmp_path / "s").symlink_to(link)
    assert status("s", argument, tmp_path) == 125


def test_a_link_below_another_name_is_no_tcp_service(tmp_path: Path) -> None:
    (tmp_path / "s").symlink_to("/dev/tcpx")
    assert status("s", None, tmp_path) == 127


@pytest.mark.parametrize("size", [254, 255, 256])
def test_qsb_089_lengths_of_names(size: int) -> None:
    """A name with its argument is looked up if it can be a file's name, whole or not at all."""
    argument = "x" * (size - 2)
    assert (f"s+{argument}" in names("s", argument)) == (size <= 255)


@given(st.text(max_size=300))
def test_no_argument_leads_out_of_the_folders(argument: str) -> None:
    assert all("/" not in name and os.path.basename(name) == name for name in names("s", argument))
