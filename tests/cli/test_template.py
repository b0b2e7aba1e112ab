"""cloison template: what is refused before any work, and how an image becomes a qube."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, Refused

from cloison.cli import main, template
from cloison.client.connection import Connection
from cloison.errors import CloisonError
from cloison.templates.build import BuildRequest, Built
from cloison.wire import admin

BUILT = Built("/somewhere/root.img", "6.1.0-9-cloud-amd64", 10 << 30, {"qrexec": "1", "os-version": "12"})


def changes(qubesd: FakeQubesd) -> list[tuple[str, str, str, bytes]]:
    return [call for call in qubesd.calls if call[1].rpartition(".")[2] not in ("List", "Get", "GetAll")]


@pytest.fixture
def sealing(qubesd: FakeQubesd) -> FakeQubesd:
    for method in ("SealRoot", "FeaturesRequest"):
        qubesd.answers[f"internal.cloison.{method}"] = lambda *_: admin.ok(b"")
    qubesd.qubes["dom0"] |= {"default_template": "", "default_kernel": ""}
    return qubesd


def test_a_new_template_is_made_sealed_and_default(sealing: FakeQubesd) -> None:
    template.register(Connection(), "d13", BUILT, exists=False)
    assert changes(sealing) == [
        ("dom0", "admin.vm.Create.TemplateVM", "", b"name=d13 label=black unfinished=cloison-template-build"),
        ("d13", "internal.cloison.SealRoot", "", b"/somewhere/root.img"),
        ("d13", "internal.cloison.FeaturesRequest", "", b"qrexec=1\nos-version=12\n"),
        ("d13", "admin.vm.feature.Remove", "prohibit-start", b""),
        ("dom0", "admin.property.Set", "default_template", b"d13"),
        ("dom0", "admin.property.Set", "default_kernel", b"6.1.0-9-cloud-amd64"),
    ]


def test_defaults_that_are_set_stay(sealing: FakeQubesd) -> None:
    sealing.qubes["dom0"] |= {"default_template": "debian-12", "default_kernel": "5"}
    template.register(Connection(), "debian-12", BUILT, exists=True)
    assert not any(method.startswith(("admin.property.Set", "admin.vm.Create")) for _, method, _, _ in sealing.calls)


@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_seal_leaves_what_was(sealing: FakeQubesd, exists: bool) -> None:
    def refuse(*_: object) -> bytes:
        raise Refused("StoragePoolException", "no room")
    sealing.answers["internal.cloison.SealRoot"] = refuse
    before = set(sealing.qubes)
    with pytest.raises(CloisonError, match="no room"):
        template.register(Connection(), "debian-12" if exists else "d13", BUILT, exists=exists)
    assert set(sealing.qubes) == before


@pytest.mark.parametrize("words", [
    ["a,b"], ["../x"], ['x"y'], ["x\ny"], ["a=b"], ["d"], ["nonsense"], ["d", "--suite", "a b"],
    ["debian-13", "--suite", "bookworm"], ["sid", "--include", "x;y"], ["sid", "--size", "1M"],
    ["sid", "--mirror", "/etc"], ["work"],
])
def test_refused_before_any_work(qubesd: FakeQubesd, root: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main.main(["template", "build", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cloison: error: ")
    assert changes(qubesd) == []
    assert not os.path.exists(root / "data" / "vm-kernels")


@pytest.mark.parametrize(("words", "version", "suite"), [
    (["debian-13"], "", "trixie"), (["debian-12"], "", "bookworm"), (["d", "--suite", "debian-12"], "", "bookworm"),
    (["debian-12"], "13", "bookworm"), (["work2"], "13", "trixie"), (["work2", "--suite", "12"], "13", "bookworm"),
])
def test_the_suite_is_what_is_built_and_said_first(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], version: str,
    suite: str,
) -> None:
    """By name, by option, or as the template of that name is now."""
    qubesd.answers["admin.vm.volume.Info"] = lambda *_: admin.ok(b"pool=p\nvid=v\nsize=0\nusage=0\n")
    if version:
        qubesd.qubes[words[0]] = {"class": "TemplateVM", "state": "Halted", "label": "black"}
        qubesd.features[words[0]] = {"os-version": version}
    built = []

    def fake_build(request: BuildRequest, *_: object) -> Built:
        assert suite in capsys.readouterr().out.splitlines()[0]
        built.append(request.suite)
        raise CloisonError("far enough")
    monkeypatch.setattr(template, "build", fake_build)
    assert main.main(["template", "build", *words]) == 1
    assert built == [suite]


def test_a_template_that_is_built_again_keeps_its_packages_and_its_size(
    sealing: FakeQubesd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    sealing.qubes["t"] = {"class": "TemplateVM", "state": "Halted", "label": "black"}
    sealing.features["t"] = {"os-version": "13", "cloison-include": "git,g++"}
    size = [20 << 30]
    sealing.answers["admin.vm.volume.Info"] = lambda *_: admin.ok(f"pool=p\nvid=v\nsize={size[0]}\nusage=0\n".encode())
    built: list[BuildRequest] = []

    def fake_build(request: BuildRequest, *_: object) -> Built:
        built.append(request)
        return Built("/root.img", "6.1", request.size, {"os": "Linux"}, request.include)
    monkeypatch.setattr(template, "build", fake_build)
    assert main.main(["template", "build", "t"]) == 0
    assert (built[-1].include, built[-1].size) == (("git", "g++"), 20 << 30)
    assert "t: Debian 13 (trixie), with git, g++\n" in capsys.readouterr().out
    assert ("t", "admin.vm.feature.Set", "cloison-include", b"git,g++") in sealing.calls
    assert main.main(["template", "build", "t", "--include", "file", "--include", "less curl", "--size", "4G"]) == 0
    assert (built[-1].include, built[-1].size) == (("file", "less", "curl"), 4 << 30)
    assert ("t", "admin.vm.feature.Set", "cloison-include", b"file,less,curl") in sealing.calls
    assert main.main(["template", "build", "t", "--include", ""]) == 0
    assert built[-1].include == () and ("t", "admin.vm.feature.Set", "cloison-include", b"") in sealing.calls
    size[0] = (10 << 30) + 512                   # no build makes such a disk
    assert main.main(["template", "build", "t"]) == 0
    assert built[-1].size == 10 << 30


def test_no_qubesd_no_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["template", "build", "d"]) == 1
    assert "cloison up" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [
    ("10G", 10 << 30), ("10GiB", 10 << 30), ("4096M", 4 << 30), ("1T", 1 << 40), ("4294967296", 4 << 30),
])
def test_sizes(text: str, size: int) -> None:
    assert template.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "1.5G", "2T", "9" * 11, "10 G", "10Q"])
def test_refused_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        template.parse_size(text)


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with template.progress("d") as report:
        report(5, "working")
    assert capsys.readouterr().err == "d:   5 % working\n"
