"""A service's configuration: `rpc-config/SERVICE[+ARGUMENT]`, a small part of TOML (reference/qrexec.md 10.5).

Whatever can't be read, or is not understood, fails the call: a line that was to restrict a service must not be lost.
"""
from __future__ import annotations

import os
import re
from typing import NamedTuple

from cloison.qrexec.lookup import FAILED, CannotStart, first
from cloison.runtime.say import say

CONFIG_PATH = "/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config"
MAX_FILE = 65536
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)[ \t]*=[ \t]*('[^']*'|[^ \t#']+)[ \t]*(?:#.*)?")
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")


class Config(NamedTuple):
    """What a service's file says; the defaults hold without one."""

    wait_for_session: bool = False
    force_user: str = ""
    skip_service_descriptor: bool = False
    exit_on_client_eof: bool = False
    exit_on_service_eof: bool = False

    @property
    def for_streams(self) -> bool:
        """It says something that only socket services heed."""
        return self.skip_service_descriptor or self.exit_on_client_eof or self.exit_on_service_eof


DEFAULT = Config()


def parse(text: str) -> Config:
    """Raises ValueError with the line's number."""
    flags: dict[str, bool] = {}
    users: list[str] = []
    if "\0" in text:
        raise ValueError("a NUL")
    for number, line in enumerate(text.split("\n"), start=1):
        bare = line.removesuffix("\r")
        if not bare.strip(" \t") or bare.startswith("#"):
            continue
        match = _LINE.fullmatch(bare)
        if match is None:
            raise ValueError(f"line {number}: not `key = value`")
        key, value = match[1].replace("-", "_"), _value(match[2], number)
        if "_" in match[1] or key not in Config._fields:
            say(f"service configuration: unknown key {match[1]!r}")
            continue
        if key in flags or (key == "force_user" and users):
            raise ValueError(f"line {number}: {match[1]} again")
        if key == "force_user":
            users.append(_user(value, number))
        else:
            flags[key] = _flag(key, value, number)
    config = Config(force_user="".join(users), **flags)
    if config.force_user and config.for_streams:
        raise ValueError("force-user has no meaning for a socket service")
    return config


def _value(text: str, number: int) -> bool | int | str:
    if text.startswith("'"):
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text):
        return int(text)
    raise ValueError(f"line {number}: neither a truth value, a number nor a text in single quotes")


def _user(value: bool | int | str, number: int) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"line {number}: not a user's name in single quotes")


def _flag(key: str, value: bool | int | str, number: int) -> bool:
    if isinstance(value, bool) or (key == "wait_for_session" and value in (0, 1)):
        return bool(value)
    raise ValueError(f"line {number}: not a truth value")


def load(service: str, argument: str | None) -> Config:
    """The configuration for a call. Raises CannotStart."""
    path = os.environ.get("QUBES_RPC_CONFIG_PATH", CONFIG_PATH)
    return first(service, argument, path, _read) or DEFAULT


def _read(path: str) -> Config:
    """Raises OSError, CannotStart."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = os.read(fd, MAX_FILE + 1)
    finally:
        os.close(fd)
    try:
        if len(data) > MAX_FILE:
            raise ValueError("too long")
        return parse(data.decode("utf-8"))
    except ValueError as error:
        raise CannotStart(FAILED, f"{path}: {error}") from None
