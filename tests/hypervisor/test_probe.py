"""The KVM probe, with a fake bubblewrap on PATH in the guest's place: every verdict, and when one is kept."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloison.hypervisor import probe, sandbox
from cloison.hypervisor.probe import Kvm
from cloison.runtime.paths import Paths

Fake = Callable[[str], None]
RUNS = f"echo; echo '{probe.MARKER.decode()}'; exec tail -f /dev/null"
HANGS = "exec tail -f /dev/null"
ENDS = r"printf 'booting\n\033[2Jkvm: assertion failed\n' >&2; exit 134"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    result = Paths.from_environment({"CLOISON_ROOT": str(tmp_path / "root")})
    result.ensure()
    return result


@pytest.fixture
def kernel(paths: Paths) -> Path:
    folder = Path(paths.kernels, "6.1.0-9")
    folder.mkdir(parents=True)
    for name in ("vmlinuz", "initramfs"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "kvm"
    path.write_bytes(b"")
    path.chmod(0o666)
    return str(path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """In a folder that every user reaches: bubblewrap is not run as root."""
    programs = Path(tempfile.mkdtemp(prefix="cloison-programs-"))
    programs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def write(script: str) -> None:
        for name, text in (("bwrap", script), ("qemu-system-x86_64", "exit 1")):
            if not (programs / name).exists() or name == "bwrap":       # QEMU written anew is another one, and probed again
                (programs / name).write_text(f"#!/bin/sh\n{text}\n")
                (programs / name).chmod(0o755)
    yield write
    shutil.rmtree(programs)


def test_no_device(paths: Paths, tmp_path: Path) -> None:
    assert probe.probe(paths, device=str(tmp_path / "none")).kvm is Kvm.ABSENT


def test_a_device_for_root_alone_is_none_for_roots_qubes(paths: Paths, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chmod(device, 0o600)
    monkeypatch.setattr(sandbox, "host_user", lambda: sandbox.FIRST_USER)
    verdict = probe.probe(paths, device=device)
    assert verdict.kvm is Kvm.DENIED and "none but root" in verdict.detail
    monkeypatch.setattr(sandbox, "host_user", lambda: None)
    assert probe.probe(paths, device=device).kvm is Kvm.UNPROBED


def test_no_kernel_yet(paths: Paths, device: str) -> None:
    verdict = probe.probe(paths, device=device)
    assert verdict.kvm is Kvm.UNPROBED
    assert "not probed yet" in verdict.detail


def test_a_guest_that_runs(paths: Paths, kernel: Path, device: str, fake: Fake) -> None:
    fake(RUNS)
    assert probe.probe(paths, device=device).kvm is Kvm.WORKS


def test_a_device_that_opens_but_hangs_is_recognised(kernel: Path, fake: Fake) -> None:
    fake(HANGS)
    verdict = probe.run_guest(str(kernel), "kvm", 0.1)
    assert verdict.kvm is Kvm.HANGS
    assert "opens, but" in verdict.detail


def test_qemu_that_ends_is_quoted_without_control_characters(paths: Paths, kernel: Path, device: str, fake: Fake) -> None:
    fake(ENDS)
    verdict = probe.probe(paths, device=device)
    assert verdict.kvm is Kvm.FAILS
    assert verdict.detail.endswith("kvm: assertion failed")
    assert verdict.detail.isprintable()


@pytest.mark.parametrize("script", [RUNS, HANGS, "exec cat /dev/zero"])
def test_whatever_it_did_it_is_killed(kernel: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake(script)
    started: list[subprocess.Popen[bytes]] = []
    run = sandbox.run

    def kept(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(run(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(sandbox, "run", kept)
    probe.run_guest(str(kernel), "kvm", 0.1)
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_flood_of_output_ends(kernel: Path, fake: Fake) -> None:
    fake("exec cat /dev/zero")
    assert probe.run_guest(str(kernel), "kvm", 60).kvm is Kvm.HANGS


def test_verdict_is_kept_until_the_kernel_changes(paths: Paths, kernel: Path, device: str, fake: Fake) -> None:
    fake(RUNS)
    first = probe.probe(paths, device=device)
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    before = os.stat(qemu)
    fake(ENDS)
    os.utime(qemu, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert probe.probe(paths, device=device) == first
    os.utime(kernel / "vmlinuz", ns=(1, 1))
    assert probe.probe(paths, device=device).kvm is Kvm.FAILS


def test_what_ended_early_is_tried_again(paths: Paths, kernel: Path, device: str, fake: Fake) -> None:
    fake(ENDS)
    assert probe.probe(paths, device=device).kvm is Kvm.FAILS
    fake(RUNS)
    assert probe.probe(paths, device=device).kvm is Kvm.WORKS


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"key": 1}', '{"key": "K", "kvm": "perhaps", "detail": "", "seconds": 0}', "9" * 5000,
])
def test_a_spoilt_cache_is_probed_again(paths: Paths, kernel: Path, device: str, fake: Fake, text: str) -> None:
    fake(RUNS)
    Path(paths.data, "kvm-probe.json").write_text(text.replace("K", probe._key(str(kernel))))
    assert probe.probe(paths, device=device).kvm is Kvm.WORKS
    assert "works" in Path(paths.data, "kvm-probe.json").read_text()


def test_accelerator_without_a_kernel_is_tcg(paths: Paths) -> None:
    assert probe.accelerator(paths) == "tcg"
