"""The calls that read and change policy files: policy.List, Get, Replace, Remove, the same below `include`, GetFiles, and
policy.RegisterArgument (reference/qrexec.md 17).

One request at a time (a lock on the folder). A change is tried on the whole policy before it is made; who changes a file
says which content it saw, so that no edit is lost. What is listed and read is what counts: the user's file, or the shipped
one where there is none; what is written is always the user's.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cloison.errors import CloisonError
from cloison.policy.parse import MAX_FILE, SUFFIX, PolicySyntaxError, Root, parse
from cloison.policy.rules import Rules
from cloison.qrexec.policyd.policy_files import FolderReader, Folders
from cloison.runtime.files import fsync_dir

MODE = 0o664
INCLUDE = "include"
REGISTERED = "60-registered-arguments"
ANY, NEW, HASH = b"any", b"new", b"sha256:"
MAX_PAYLOAD = MAX_FILE + 128
MAX_ARGUMENT = 64

_CHARACTERS = re.compile(r"[A-Za-z0-9+._-]{0,1000}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,255}")
_ARGUMENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUBE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")


class PolicyAdminException(CloisonError):
    """Root. The class's name goes over the wire."""


class PolicyAdminTokenException(PolicyAdminException):
    """The file is not what the caller saw."""


class PolicyAdminFileNotFoundException(PolicyAdminException):
    """No such file."""


class PolicyAdminProtocolException(PolicyAdminException):
    """A call that is not of the agreed form."""


class PolicyAdminSyntaxException(PolicyAdminException):
    """The policy would be invalid afterwards."""


class PolicyAdminInvalidFileNameException(PolicyAdminException):
    """Not a name that a policy file can have."""


class PolicyAdminInvalidFilePathException(PolicyAdminInvalidFileNameException):
    """A name that leads elsewhere."""


class Caller(NamedTuple):
    """Who calls, and what it asked for: RegisterArgument opens the one to the other."""

    source: str = "dom0"
    requested_target: str = ""


class Changed:
    """A `Reader` of the policy as it would be: one file with other content, or without (None)."""

    def __init__(self, reader: FolderReader, path: str, content: bytes | None) -> None:
        self._reader, self._path, self._content = reader, path, content

    def names(self, root: Root, folder: str) -> Sequence[str]:
        names = self._reader.names(root, folder)
        parent, _, name = os.path.normpath(self._path).rpartition("/")
        if root is not Root.MAIN or os.path.normpath(folder) != (parent or "."):
            return names
        others = [each for each in names if each != name]
        return others if self._content is None else [*others, name]

    def content(self, root: Root, path: str) -> bytes:
        if root is not Root.MAIN or os.path.normpath(path) != os.path.normpath(self._path):
            return self._reader.content(root, path)
        if self._content is None:
            raise FileNotFoundError(f"{path} would not exist any more")
        return self._content


class PolicyAdmin:
    """`call` serves one request. `where`: the folders, of which the user's is written to."""

    def __init__(self, where: Folders, caller: Caller = Caller()) -> None:  # noqa: B008 a constant
        self._where, self._caller = where, caller
        self._folder = where[Root.MAIN][0]
        self._shipped = {Root.MAIN: where[Root.MAIN][1:]}
        self._reader = FolderReader(where)

    def call(self, service: str, argument: str, payload: bytes) -> bytes:
        """The output. Raises PolicyAdminException."""
        if len(payload) > MAX_PAYLOAD:
            raise PolicyAdminProtocolException("the payload is too long")
        handler = _SERVICES.get(service)
        if handler is None:
            raise PolicyAdminProtocolException(f"there is no service {service[:60]!r}")
        run, takes_argument, takes_payload = handler
        if not _CHARACTERS.fullmatch(argument):
            raise PolicyAdminProtocolException("an argument may only hold letters, digits, '+', '-', '.', '_'")
        if argument and not takes_argument:
            raise PolicyAdminProtocolException("unexpected argument")
        if payload and not takes_payload:
            raise PolicyAdminProtocolException("unexpected payload")
        try:
            with self._locked():
                return run(self, argument, payload)
        except PolicySyntaxError as error:
            raise PolicyAdminSyntaxException(str(error)) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _list(self, folder: str) -> bytes:
        suffix = "" if folder else SUFFIX
        try:
            names = self._reader.names(Root.MAIN, folder or ".")
        except FileNotFoundError:
            names = []
        stems = sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix) and not name.startswith("."))
        return "".join(f"{stem}\n" for stem in stems).encode()

    def list_files(self, _: str, __: bytes) -> bytes:
        return self._list("")

    def list_includes(self, _: str, __: bytes) -> bytes:
        return self._list(INCLUDE)

    def get_file(self, name: str, _: bytes) -> bytes:
        return self._get(_file(name))

    def get_include(self, name: str, _: bytes) -> bytes:
        return self._get(_include(name))

    def _get(self, path: str) -> bytes:
        content = self._content(path)
        if content is None:
            raise PolicyAdminFileNotFoundException(f"there is no file {path}")
        return _token(content) + b"\n" + content

    def _content(self, path: str) -> bytes | None:
        try:
            return self._reader.content(Root.MAIN, path)
        except FileNotFoundError:
            return None

    def get_files(self, service: str, _: bytes) -> bytes:
        """Files with a rule for the service or for every service: the stem of one below the policy folders, else the path."""
        if not _SERVICE.fullmatch(service):
            raise PolicyAdminProtocolException("the argument must be a service")
        files = dict.fromkeys(rule.file for rule in parse(self._reader).for_service(service))
        return "".join(f"{self._told(file)}\n" for file in files).encode()

    def _told(self, file: str) -> str:
        for root in (Root.RUNTIME, Root.LEGACY):
            if file.startswith(root.value):
                return os.path.join(self._where[root][0], file.removeprefix(root.value))
        return file if file.startswith(("/", "../")) else os.path.splitext(os.path.basename(file))[0]

    # -- writing -------------------------------------------------------------------------------------------------------

    def replace_file(self, name: str, payload: bytes) -> bytes:
        return self._replace(_file(name), payload)

    def replace_include(self, name: str, payload: bytes) -> bytes:
        return self._replace(_include(name), payload)

    def _replace(self, path: str, payload: bytes) -> bytes:
        token, newline, content = payload.partition(b"\n")
        if not newline:
            raise PolicyAdminProtocolException("the payload must be a token, a line end and the content")
        self._check_token(path, token)
        self._validate(path, content)
        self._write(path, content)
        return b""

    def remove_file(self, name: str, payload: bytes) -> bytes:
        return self._remove(_file(name), payload)

    def remove_include(self, name: str, payload: bytes) -> bytes:
        return self._remove(_include(name), payload)

    def _remove(self, path: str, token: bytes) -> bytes:
        """The shipped file of that name counts again, if there is one."""
        self._check_token(path, token)
        if self._content(path) is None:
            raise PolicyAdminFileNotFoundException(f"there is no file {path}")
        if not os.path.lexists(self._place(path)):
            raise PolicyAdminException(f"{path} is shipped with Cloison; replace it by an empty one instead")
        self._validate(path, self._shipped_content(path))
        os.unlink(self._place(path))
        fsync_dir(os.path.dirname(self._place(path)))
        return b""

    def register_argument(self, service: str, payload: bytes) -> bytes:
        """The caller offers itself to the qube it asked for, as the one that serves an argument of that service."""
        argument = payload.decode("ascii", "replace")
        if not _SERVICE.fullmatch(service) or not _ARGUMENT.fullmatch(argument):
            raise PolicyAdminProtocolException("a service and an argument of 1 to 64 letters, digits, '-', '.', '_' are needed")
        backend, frontend = self._caller
        if not _QUBE.fullmatch(backend) or not _QUBE.fullmatch(frontend):
            raise PolicyAdminProtocolException("the caller and what it asks for must be qubes")
        if any(rule.argument == f"+{argument}" for rule in parse(self._reader).for_service(service)):
            raise PolicyAdminException("there is a rule for this argument already")
        path = _file(REGISTERED)
        before = self._content(path) or b""
        content = before + (b"" if not before or before.endswith(b"\n") else b"\n")
        content += f"{service} +{argument} {frontend} {backend} allow\n".encode()
        self._validate(path, content)
        self._write(path, content)
        return b""

    def _place(self, path: str) -> str:
        """Raises PolicyAdminInvalidFilePathException for a link to somewhere else, which is not written through."""
        place = os.path.join(self._folder, path)
        if os.path.dirname(os.path.realpath(place)) != os.path.realpath(os.path.dirname(place)):
            raise PolicyAdminInvalidFilePathException(f"{path} leads out of its folder")
        return place

    def _shipped_content(self, path: str) -> bytes | None:
        if not self._shipped[Root.MAIN]:
            return None
        try:
            return FolderReader(self._shipped).content(Root.MAIN, path)
        except FileNotFoundError:
            return None

    def _check_token(self, path: str, token: bytes) -> None:
        content = self._content(path)
        if token == ANY:
            return
        if token == NEW:
            if content is not None:
                raise PolicyAdminTokenException(f"{path} exists already")
        elif not token.startswith(HASH):
            raise PolicyAdminProtocolException("the token must be any, new, or sha256: and a sum")
        elif content is None:
            raise PolicyAdminTokenException(f"there is no file {path} any more")
        elif token != _token(content):
            raise PolicyAdminTokenException(f"{path} has been changed since it was read")

    def _validate(self, path: str, content: bytes | None) -> Rules:
        """The whole policy with the change. Raises PolicySyntaxError."""
        return parse(Changed(self._reader, path, content))

    def _write(self, path: str, content: bytes) -> None:
        """A name that begins with `!` is no policy, so a crash leaves nothing that counts."""
        place = self._place(path)
        folder, name = os.path.split(place)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        temporary = os.path.join(folder, f"!{name}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.rename(temporary, place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        fsync_dir(folder)


def _file(name: str) -> str:
    return f"{_checked(name)}{SUFFIX}"


def _include(name: str) -> str:
    return f"{INCLUDE}/{_checked(name)}"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PolicyAdminInvalidFileNameException("a file's name may only hold letters, digits, '_', '-'")
    return name


def _token(content: bytes) -> bytes:
    return HASH + hashlib.sha256(content).hexdigest().encode()


_Handler = Callable[[PolicyAdmin, str, bytes], bytes]

# Service: what serves it, whether it takes an argument, whether it takes a payload.
_SERVICES: Mapping[str, tuple[_Handler, bool, bool]] = {
    "policy.List": (PolicyAdmin.list_files, False, False),
    "policy.Get": (PolicyAdmin.get_file, True, False),
    "policy.Replace": (PolicyAdmin.replace_file, True, True),
    "policy.Remove": (PolicyAdmin.remove_file, True, True),
    "policy.include.List": (PolicyAdmin.list_includes, False, False),
    "policy.include.Get": (PolicyAdmin.get_include, True, False),
    "policy.include.Replace": (PolicyAdmin.replace_include, True, True),
    "policy.include.Remove": (PolicyAdmin.remove_include, True, True),
    "policy.GetFiles": (PolicyAdmin.get_files, True, False),
    "policy.RegisterArgument": (PolicyAdmin.register_argument, True, True),
}
SERVICES = tuple(_SERVICES)
