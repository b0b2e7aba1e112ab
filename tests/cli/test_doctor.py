"""cloison doctor: each failing state, made with fake programs on PATH and fake /proc, /sys and /etc."""
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd

from cloison.cli import doctor, main
from cloison.client.connection import Connection
from cloison.hypervisor import sandbox
from cloison.hypervisor.probe import Kvm, Verdict
from cloison.runtime.paths import Paths
from cloison.wire import admin

GIB = 1 << 30


@pytest.fixture
def host(tmp_path: Path) -> Path:
    root = tmp_path / "host"
    for name, text in {
        "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
        "sys/devices/system/cpu/vulnerabilities/meltdown": "Mitigation: PTI\n",
        "sys/devices/system/cpu/vulnerabilities/l1tf": "Not affected\n",
        "sys/kernel/mm/ksm/run": "0\n",
        "etc/subuid": "alice:100000:65536\n", "etc/subgid": "alice:100000:65536\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In a folder that every user reaches: bubblewrap is not tried as root."""
    folder = Path(tempfile.mkdtemp(prefix="cloison-programs-"))
    folder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    shutil.rmtree(folder)


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def examine(tmp_path: Path, host: Path, user: str = "root") -> dict[str, doctor.Check]:
    paths = Paths.from_environment({"CLOISON_ROOT": str(tmp_path / "root")})
    paths.ensure()
    return {check.name: check for check in doctor.examine(paths, str(host), user)}


def test_each_check_that_is_not_ok_has_advice(tmp_path: Path, host: Path) -> None:
    checks = examine(tmp_path, host)
    assert {"qemu", "bwrap", "mmdebstrap", "mke2fs", "sandbox", "subordinate ids", "kvm"} <= set(checks)
    assert {"disk", "memory", "cpu", "ksm"} <= set(checks)
    for check in checks.values():
        assert (check.advice == "") == (check.status == "ok"), check
        assert check.said.endswith(".") and "\n" not in check.said


def test_what_running_as_root_costs_is_said() -> None:
    assert doctor._root(None) == doctor.Check("root", "ok", "Cloison runs as an ordinary user.")
    check = doctor._root(1_900_000_001)
    assert check.status == "warn" and "costs the machine" in check.said and "nothing needs root" in check.advice


def test_the_sandbox_is_tried_as_who_will_run_it(programs: Path) -> None:
    """Root's boxes are made by users of their own, who may be denied what root is not."""
    fake(programs, "bwrap", "echo $(id -u) >&2; exit 1")
    user = sandbox.host_user()
    assert doctor._sandbox().said.endswith(f": {os.getuid() if user is None else user}.")


@pytest.mark.parametrize(("output", "status"), [
    ("QEMU emulator version 7.2.0 (Debian)", "ok"), ("QEMU emulator version 10.0.2", "ok"), ("QEMU emulator version 7.1.9", "fail"),
    ("QEMU emulator version 6.2.0", "fail"), ("what?", "fail"), ("", "fail"),
])
def test_qemu_version(tmp_path: Path, host: Path, programs: Path, output: str, status: str) -> None:
    fake(programs, "qemu-system-x86_64", f"echo '{output}'")
    assert examine(tmp_path, host)["qemu"].status == status


@pytest.mark.parametrize(("kvm", "version", "status"), [
    (Kvm.WORKS, "7.2", "ok"), (Kvm.ABSENT, "7.2", "warn"), (Kvm.HANGS, "9.2", "warn"), (Kvm.ABSENT, "10.0", "ok"),
    (Kvm.ABSENT, "?", "warn"),
])
def test_an_emulator_of_old_is_named(host: Path, programs: Path, kvm: Kvm, version: str, status: str) -> None:
    fake(programs, "qemu-system-x86_64", f"echo 'QEMU emulator version {version}.1'")
    assert doctor._emulation(str(host), Verdict(kvm, "")).status == status


@pytest.mark.parametrize(("release", "is_command"), [
    ('ID=debian\nVERSION_CODENAME=bookworm\n', True), ('VERSION_CODENAME="bookworm"\n', True), ("VERSION_CODENAME=jammy\n", False),
    ("", False),
])
def test_debian_12_has_a_newer_emulator_in_its_backports(host: Path, programs: Path, release: str, is_command: bool) -> None:
    (host / "etc/os-release").write_text(release)
    fake(programs, "qemu-system-x86_64", "echo 'QEMU emulator version 7.2.1'")
    advice = doctor._emulation(str(host), Verdict(Kvm.ABSENT, "")).advice
    assert ("sudo apt install -t bookworm-backports qemu-system-x86 qemu-utils" in advice) == is_command
    assert "QEMU 10.0 or later" in advice or is_command


def test_old_mke2fs(tmp_path: Path, host: Path, programs: Path) -> None:
    fake(programs, "mke2fs", "echo 'mke2fs 1.46.5 (30-Dec-2021)' >&2")
    check = examine(tmp_path, host)["mke2fs"]
    assert check.status == "fail"
    assert "1.46 is too old" in check.said


def test_namespaces_forbidden(tmp_path: Path, host: Path, programs: Path) -> None:
    fake(programs, "bwrap", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    check = examine(tmp_path, host)["sandbox"]
    assert check.status == "fail"
    assert "No permissions to create new namespace" in check.said
    assert "user namespaces" in check.advice


def test_unshare_forbidden(tmp_path: Path, host: Path, programs: Path) -> None:
    fake(programs, "unshare", "echo 'unshare: failed' >&2; exit 1")
    assert examine(tmp_path, host)["subordinate ids"].status == "fail"


def test_no_advice_sends_back_to_the_doctor_for_what_the_doctor_says(
    tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = examine(tmp_path, host)
    assert checks["bwrap"].advice == "sudo apt install bubblewrap"
    assert checks["sandbox"].said == "can't be tried: bwrap is not installed."
    assert checks["sandbox"].advice == "Install what is named above, then run cloison doctor again."


def test_missing_program_names_its_package() -> None:
    check = doctor._program("no-such-program", "some-package", "a test")
    assert check.status == "fail"
    assert check.advice == "sudo apt install some-package"


def subordinate_ids(tmp_path: Path, host: Path, programs: Path) -> doctor.Check:
    fake(programs, "newuidmap", "exit 0")
    fake(programs, "unshare", "exit 0")
    return examine(tmp_path, host, "alice")["subordinate ids"]


def test_subordinate_ids(tmp_path: Path, host: Path, programs: Path) -> None:
    assert subordinate_ids(tmp_path, host, programs).status == "ok"


@pytest.mark.parametrize(("file", "row"), [
    ("subuid", "alice:100000:65535"), ("subgid", ""), ("subgid", "bob:100000:65536"), ("subuid", "alice:x:y"), ("subuid", "alice"),
])
def test_missing_subordinate_ids(tmp_path: Path, host: Path, programs: Path, file: str, row: str) -> None:
    (host / "etc" / file).write_text(row + "\n")
    check = subordinate_ids(tmp_path, host, programs)
    assert check.status == "fail"
    assert file in check.said
    assert "usermod --add-subuids" in check.advice


@pytest.mark.parametrize("kvm", list(Kvm))
def test_kvm_verdicts(kvm: Kvm) -> None:
    check = doctor._kvm(Verdict(kvm, "said"))
    if kvm is Kvm.WORKS:
        assert check.status == "ok"
    else:
        assert check.status == "warn"
        assert "NO security boundary" in check.said
        assert check.advice


@pytest.mark.parametrize(("free", "status"), [
    (10 * GIB, "ok"), (10 * GIB - 1, "warn"), (4 * GIB, "warn"), (4 * GIB - 1, "fail"), (0, "fail"),
])
def test_disk(free: int, status: str) -> None:
    assert doctor._disk(free).status == status


@pytest.mark.parametrize(("available", "status"), [("2097152", "ok"), ("2097151", "warn"), ("1048575", "fail")])
def test_memory(tmp_path: Path, host: Path, available: str, status: str) -> None:
    (host / "proc/meminfo").write_text(f"MemAvailable: {available} kB\n")
    assert examine(tmp_path, host)["memory"].status == status


def test_open_cpu_leaks_are_named(tmp_path: Path, host: Path) -> None:
    assert examine(tmp_path, host)["cpu"].status == "ok"
    (host / "sys/devices/system/cpu/vulnerabilities/mds").write_text("Vulnerable: Clear CPU buffers attempted, no microcode\n")
    check = examine(tmp_path, host)["cpu"]
    assert check.status == "warn"
    assert "mds" in check.said and "meltdown" not in check.said


def test_ksm_on(tmp_path: Path, host: Path) -> None:
    (host / "sys/kernel/mm/ksm/run").write_text("1\n")
    assert examine(tmp_path, host)["ksm"].status == "warn"


def test_a_check_that_cannot_be_made_failed(tmp_path: Path, host: Path) -> None:
    (host / "proc/meminfo").unlink()
    check = examine(tmp_path, host)["memory"]
    assert check.status == "fail"
    assert "could not be looked at" in check.said


def test_json_and_exit_status(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path / "root"))
    fake(programs, "qemu-system-x86_64", "echo 'version 6.0'")
    assert main.main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert {"name", "status", "said", "advice"} == set(data[0])
    assert data[0]["name"] == "qemu" and data[0]["status"] == "fail"
    assert main.main(["doctor"]) == 1
    assert capsys.readouterr().out.startswith("fail  qemu: ")


def test_templates_with_an_older_agent(qubesd: FakeQubesd) -> None:
    sentence = "template {0} has the agent of an older Cloison; to renew it: cloison template build {0}"
    older = {"t": sentence.format("t"), "work": sentence.format("t"), "u": sentence.format("u")}
    qubesd.answers["internal.cloison.Status"] = lambda *_: admin.ok(json.dumps({"old_agents": older}).encode())
    check = doctor._templates(Connection())
    assert check == doctor.Check(
        "templates", "warn", "template t has the agent of an older Cloison; template u has the agent of an older Cloison.",
        "cloison template build t\ncloison template build u")
    older.clear()
    assert doctor._templates(Connection()).status == "ok"


def test_templates_are_not_looked_at_without_qubesd(root: Path) -> None:
    check = doctor._templates(Connection())
    assert check.status == "ok" and "cloison up" in check.said
