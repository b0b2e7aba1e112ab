"""A service's configuration: what is understood, and that everything else fails the call."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.service_config import DEFAULT, Config, load, parse


@pytest.mark.parametrize(("text", "config"), [
    ("", DEFAULT), ("# nothing\n\n", DEFAULT), ("wait-for-session = true\n", Config(wait_for_session=True)),
    ("wait-for-session=1", Config(wait_for_session=True)), ("wait-for-session = 0\n", DEFAULT),
    ("force-user = 'root' # why\r\n", Config(force_user="root")),
    ("skip-service-descriptor\t=\ttrue  \n", Config(skip_service_descriptor=True)),
    ("exit-on-client-eof = true\nexit-on-service-eof = true\n", Config(exit_on_client_eof=True, exit_on_service_eof=True)),
    ("force-user = 'root'\nskip-service-descriptor = false\n", Config(force_user="root")), ("unknown = 12\n", DEFAULT),
    ("force_user = 'root'\n", DEFAULT),
])
def test_understood(text: str, config: Config) -> None:
    assert parse(text) == config


@pytest.mark.parametrize("text", [
    "wait-for-session", "wait-for-session =", "wait-for-session = 00", "wait-for-session = 01", "wait-for-session = 2",
    'wait-for-session = "true"', "wait-for-session = True", "wait-for-session = 'true'", " wait-for-session = true", "[section]",
    "wait-for-session = true\nwait-for-session = true", "force-user = true", "force-user = 'a'b'",
    "force-user = '''a'''", "force-user = ''",
    "force-user = 'root'\nforce-user = 'root'", "force-user = 'a'\nforce-user = 'b'", "exit-on-client-eof = 1",
    "exit-on-service-eof = 0", "force-user = 1", "force-user = 'root'\nskip-service-descriptor = true",
    "force-user = 'root'\nexit-on-service-eof = true", "wait-for-session = -1",
    "force-user = 'root'\nexit-on-client-eof = true", "1x = true", "a = 1 2", "a = \0", "skip-service-descriptor = 1",
])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_the_argument_s_own_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", f"{tmp_path}/none:{tmp_path}")
    (tmp_path / "s").write_text("wait-for-session = true\n")
    (tmp_path / "s+a").write_text("force-user = 'root'\n")
    assert load("s", "b") == load("s", None) == Config(wait_for_session=True)
    assert load("s", "a") == Config(force_user="root")
    assert load("t", "a") == DEFAULT


@pytest.mark.parametrize("make", [
    lambda path: path.symlink_to("/dev/null/nowhere"), lambda path: path.write_bytes(b"a = \xff"), lambda path: path.mkdir(),
    lambda path: path.write_text("#" * 70000), lambda path: path.write_text("nonsense"),
])
def test_what_can_not_be_read_fails_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path))
    assert callable(make)
    make(tmp_path / "s+")
    with pytest.raises(CannotStart) as caught:
        load("s", None)
    assert caught.value.status == 125


@given(st.text(max_size=100))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    try:
        assert isinstance(parse(text), Config)
    except ValueError as error:
        assert str(error)
