"""policy.* services: what each takes and gives, tokens, refusals, and that a change is the old file or the new one."""
from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.qrexec.policy_place import Place

from cloison.qrexec.host.host_service import SHIPPED as SERVICES
from cloison.qrexec.policyd import policy_admin
from cloison.qrexec.policyd.policy_admin import (
    Caller,
    PolicyAdmin,
    PolicyAdminException,
    PolicyAdminFileNotFoundException,
    PolicyAdminInvalidFileNameException,
    PolicyAdminInvalidFilePathException,
    PolicyAdminProtocolException,
    PolicyAdminSyntaxException,
    PolicyAdminTokenException,
)
from cloison.qrexec.policyd.policy_files import folders


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def admin(place: Place) -> PolicyAdmin:
    return PolicyAdmin(folders(place.paths))


def token(content: bytes) -> bytes:
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def test_listing_and_reading(place: Place, admin: PolicyAdmin) -> None:
    place.write("", "10-mine.policy")
    place.write("", "README")
    names = admin.call("policy.List", "", b"").decode().splitlines()
    assert names == sorted(names)
    assert {"10-mine", "35-compat", "90-default"} <= set(names)
    assert "README" not in names
    assert admin.call("policy.Get", "10-mine", b"") == token(b"") + b"\n"
    assert "admin-local-ro" in admin.call("policy.include.List", "", b"").decode().splitlines()
    with pytest.raises(PolicyAdminFileNotFoundException):
        admin.call("policy.Get", "nothing", b"")


def test_a_file_is_made_changed_and_removed(place: Place, admin: PolicyAdmin) -> None:
    file = place.user / "30-user.policy"
    one, two = b"test.S * a b allow\n", b"test.S * a b deny"
    admin.call("policy.Replace", "30-user", b"new\n" + one)
    assert file.read_bytes() == one
    assert file.stat().st_mode & 0o777 == 0o664 & ~umask()
    with pytest.raises(PolicyAdminTokenException):
        admin.call("policy.Replace", "30-user", b"new\n" + two)
    with pytest.raises(PolicyAdminTokenException):
        admin.call("policy.Replace", "30-user", token(two) + b"\n" + two)
    admin.call("policy.Replace", "30-user", token(one) + b"\n" + two)
    assert admin.call("policy.Get", "30-user", b"") == token(two) + b"\n" + two
    admin.call("policy.Replace", "30-user", b"any\n")
    assert file.read_bytes() == b""
    with pytest.raises(PolicyAdminTokenException):
        admin.call("policy.Remove", "30-user", token(two))
    admin.call("policy.Remove", "30-user", token(b""))
    assert not file.exists()
    with pytest.raises(PolicyAdminTokenException):
        admin.call("policy.Replace", "30-user", token(b"") + b"\n")
    with pytest.raises(PolicyAdminFileNotFoundException):
        admin.call("policy.Remove", "30-user", b"any")
    assert os.listdir(place.user) == ["include"]


def umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_a_link_out_of_the_folder_is_not_written_through(place: Place, admin: PolicyAdmin, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("# outside")
    (place.user / "30-user.policy").symlink_to(outside)
    for service, payload in (("policy.Replace", b"any\n# x"), ("policy.Remove", b"any")):
        with pytest.raises(PolicyAdminInvalidFilePathException):
            admin.call(service, "30-user", payload)
    assert outside.read_text() == "# outside"


def test_files_of_a_service(place: Place, admin: PolicyAdmin, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("test.S * a c deny")
    place.write(f"!include {outside}\ntest.S * a b allow\n!include-service test.S * include/mine", "10-a.policy")
    (place.user / "include/mine").write_text("a d deny")
    (place.runtime / "20-b.policy").write_text("* * a b allow")
    assert admin.call("policy.GetFiles", "test.S", b"").decode().splitlines() == [
        str(outside), "10-a", "mine", str(place.runtime / "20-b.policy")]


def test_a_shipped_file_is_overruled_and_comes_back(place: Place, admin: PolicyAdmin) -> None:
    shipped = admin.call("policy.Get", "90-default", b"")
    with pytest.raises(PolicyAdminException, match="shipped"):
        admin.call("policy.Remove", "90-default", b"any")
    admin.call("policy.Replace", "90-default", shipped.partition(b"\n")[0] + b"\n# nothing")
    assert admin.call("policy.GetFiles", "qubes.Filecopy", b"") == b""
    admin.call("policy.Remove", "90-default", token(b"# nothing"))
    assert admin.call("policy.Get", "90-default", b"") == shipped
    assert admin.call("policy.GetFiles", "qubes.Filecopy", b"") == b"90-default\n"


def test_what_would_break_the_policy_is_refused(place: Place, admin: PolicyAdmin) -> None:
    admin.call("policy.include.Replace", "mine", b"new\na b allow")
    assert admin.call("policy.include.Get", "mine", b"").partition(b"\n")[2] == b"a b allow"
    admin.call("policy.Replace", "30-user", b"new\n!include-service test.S * include/mine")
    assert admin.call("policy.GetFiles", "test.S", b"") == b"mine\n"
    before = {path: path.read_bytes() for path in place.user.rglob("*") if path.is_file()}
    for service, name, payload in (
        ("policy.Replace", "40-x", b"new\nx"), ("policy.Replace", "40-x", b"new\n\xff"), ("policy.Replace", "UPPER", b"new\n"),
        ("policy.Replace", "40-x", b"new\n!include include/nothing"), ("policy.include.Remove", "mine", b"any"),
        ("policy.include.Replace", "mine", b"any\nx"), ("policy.Replace", "30-user", b"any\n!include 30-user.policy"),
    ):
        with pytest.raises(PolicyAdminSyntaxException):
            admin.call(service, name, payload)
    assert {path: path.read_bytes() for path in place.user.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("service", "argument", "payload", "error"), [
    ("policy.List", "x", b"", PolicyAdminProtocolException),
    ("policy.List", "", b"x", PolicyAdminProtocolException),
    ("policy.Get", "", b"", PolicyAdminInvalidFileNameException),
    ("policy.Get", "a", b"x", PolicyAdminProtocolException),
    ("policy.Get", "../30-user", b"", PolicyAdminProtocolException),
    ("policy.Get", "include/x", b"", PolicyAdminProtocolException),
    ("policy.Get", "a.b", b"", PolicyAdminInvalidFileNameException),
    ("policy.Get", "a+b", b"", PolicyAdminInvalidFileNameException),
    ("policy.Get", "a\0", b"", PolicyAdminProtocolException),
    ("policy.Get", "a" * 300, b"", PolicyAdminInvalidFileNameException),
    ("policy.Get", "é", b"", PolicyAdminProtocolException),
    ("policy.Replace", "a", b"", PolicyAdminProtocolException),
    ("policy.Replace", "a", b"new", PolicyAdminProtocolException),
    ("policy.Replace", "a", b"other\n", PolicyAdminProtocolException),
    ("policy.Replace", "a", b"x" * (policy_admin.MAX_PAYLOAD + 1), PolicyAdminProtocolException),
    ("policy.Remove", "90-default", b"new", PolicyAdminTokenException),
    ("policy.Remove", "90-default", b"any\n", PolicyAdminProtocolException),
    ("policy.GetFiles", "a+b", b"", PolicyAdminProtocolException),
    ("policy.GetFiles", "", b"", PolicyAdminProtocolException),
    ("policy.Nothing", "", b"", PolicyAdminProtocolException),
    ("policy.RegisterArgument", "s", b"", PolicyAdminProtocolException),
    ("policy.RegisterArgument", "s", b"a" * 65, PolicyAdminProtocolException),
    ("policy.RegisterArgument", "s", b"a\n* * * * allow", PolicyAdminProtocolException),
    ("policy.RegisterArgument", "s s", b"a", PolicyAdminProtocolException),
    ("policy.RegisterArgument", "s", b"a", PolicyAdminProtocolException),
])
def test_refusals(admin: PolicyAdmin, service: str, argument: str, payload: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        admin.call(service, argument, payload)


def test_a_qube_registers_an_argument_once(place: Place) -> None:
    admin = PolicyAdmin(folders(place.paths), Caller("backend", "frontend"))
    admin.call("policy.RegisterArgument", "u2f.Authenticate", b"a" * 64)
    admin.call("policy.RegisterArgument", "u2f.Authenticate", b"b")
    assert (place.user / "60-registered-arguments.policy").read_text().splitlines() == [
        f"u2f.Authenticate +{'a' * 64} frontend backend allow", "u2f.Authenticate +b frontend backend allow"]
    with pytest.raises(PolicyAdminException, match="already"):
        admin.call("policy.RegisterArgument", "u2f.Authenticate", b"b")


def test_of_many_editors_at_once_one_wins(place: Place) -> None:
    content, results = b"", list[str]()

    def edit(number: int) -> None:
        try:
            PolicyAdmin(folders(place.paths)).call("policy.Replace", "30-user", token(content) + f"\n# {number}".encode())
            results.append("done")
        except PolicyAdminTokenException:
            results.append("refused")

    place.write("")
    threads = [threading.Thread(target=edit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["done", *["refused"] * 7]


def test_what_a_crash_leaves_is_no_policy(place: Place, admin: PolicyAdmin) -> None:
    (place.user / "!30-user.policy.0123").write_text("broken")
    assert b"90-default" in admin.call("policy.List", "", b"")
    admin.call("policy.Replace", "30-user", b"new\n")


def run(place: Place, service: str, payload: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
    """The shipped program, as a qrexec daemon starts it."""
    name = service.partition("+")[0]
    return subprocess.run(
        [os.path.join(SERVICES, name)], input=payload, capture_output=True, check=False,
        env={"PATH": os.environ["PATH"], "CLOISON_ROOT": os.path.dirname(place.paths.run), "QREXEC_SERVICE_FULL_NAME": service,
             "QREXEC_REMOTE_DOMAIN": "work", **environ})


def test_every_service_is_shipped_as_a_program(place: Place) -> None:
    assert set(policy_admin.SERVICES) <= set(os.listdir(SERVICES))
    assert run(place, "policy.Replace+30-user", b"new\ntest.S * a b allow").returncode == 0
    result = run(place, "policy.Get+30-user")
    assert (result.returncode, result.stdout.partition(b"\n")[2]) == (0, b"test.S * a b allow")
    result = run(place, "policy.Replace+30-user", b"any\nwrong")
    assert (result.returncode, result.stderr.split(b" ")[0]) == (1, b"PolicyAdminSyntaxException")
    assert b"work" in Path(place.paths.log, "policy-admin.log").read_bytes()


def test_another_policy_folder(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.policy").touch()
    assert run(place, "policy.List", QREXEC_POLICY_DIR=str(other)).stdout == b"a\n"


# -- on the disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done for a change to be there after a power cut. After a first entry `fail NAME` that step fails."""
    done: list[str] = []

    def told(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            done.append(name)
            if done[0] == f"fail {name}":
                raise OSError(errno.EIO, "broken")
            return real(*args)

        return call

    for owner, name in ((os, "fsync"), (os, "rename"), (os, "unlink"), (policy_admin, "fsync_dir")):
        monkeypatch.setattr(owner, name, told(name, getattr(owner, name)))
    return done


def folder_steps(steps: list[str]) -> list[str]:
    """The folder's own fsync is one of the file calls, too."""
    return [each for before, each in zip(["", *steps], steps, strict=False) if not (before == "fsync_dir" and each == "fsync")]


def test_a_change_is_on_the_disk_before_it_has_its_name(admin: PolicyAdmin, steps: list[str]) -> None:
    admin.call("policy.Replace", "30-user", b"new\ntest.S * a b allow")
    assert folder_steps(steps) == ["fsync", "rename", "fsync_dir"]
    steps.clear()
    admin.call("policy.Remove", "30-user", b"any")
    assert folder_steps(steps) == ["unlink", "fsync_dir"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_change_that_fails_leaves_the_former_file_and_nothing_else(
    place: Place, admin: PolicyAdmin, steps: list[str], failing: str,
) -> None:
    place.write("test.S * a b deny")
    before = sorted(os.listdir(place.user))
    steps.append(f"fail {failing}")
    with pytest.raises(OSError, match="broken"):
        admin.call("policy.Replace", "30-user", b"any\ntest.S * a b allow")
    assert sorted(os.listdir(place.user)) == before
    assert (place.user / "30-user.policy").read_text() == "test.S * a b deny"


def test_who_may_read_what_is_made(place: Place, admin: PolicyAdmin) -> None:
    (place.user / "include").rmdir()
    os.umask(0)
    admin.call("policy.include.Replace", "x", b"new\na b allow")
    assert (place.user / "include").stat().st_mode & 0o777 == 0o700
    assert (place.user / "include" / "x").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(("there", "said", "error"), [
    (True, b"new", PolicyAdminTokenException), (True, b"sha256:" + b"0" * 64, PolicyAdminTokenException),
    (True, b"sha256:", PolicyAdminTokenException), (True, b"", PolicyAdminProtocolException),
    (True, b"md5:0", PolicyAdminProtocolException), (False, b"sha256:" + b"0" * 64, PolicyAdminTokenException),
    (False, b"", PolicyAdminProtocolException), (False, b"new", None), (False, b"any", None), (True, b"any", None),
    (True, token(b"test.S * a b deny"), None),
])
def test_what_a_writer_says_that_it_saw(
    place: Place, admin: PolicyAdmin, there: bool, said: bytes, error: type[Exception] | None,
) -> None:
    if there:
        place.write("test.S * a b deny")
    file = place.user / "30-user.policy"
    if error is None:
        admin.call("policy.Replace", "30-user", said + b"\ntest.S * a b allow")
        assert file.read_text() == "test.S * a b allow"
        return
    with pytest.raises(PolicyAdminException) as refused:
        admin.call("policy.Replace", "30-user", said + b"\ntest.S * a b allow")
    assert type(refused.value) is error
    assert file.exists() == there and (not there or file.read_text() == "test.S * a b deny")
