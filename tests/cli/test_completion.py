"""Completion: what is offered for a line, and that bash, zsh and fish, run for real, put it there."""
from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloison.cli import complete
from cloison.cli.completion import TOOLS, script
from cloison.client.connection import Connection

LIMIT = 60                               # seconds after which a shell counts as hung


def offered(capsys: pytest.CaptureFixture[str], line: str, breaks: str = "") -> list[str]:
    status = complete.main(["--line", line, "--breaks", breaks])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert status == 0
    return [text.partition("\t")[0] for text in captured.out.splitlines()]


LINES = [
    ("qvm-start w", "work"),
    ("qvm-start ", "tpl work net"),      # not dom0
    ("qvm-shutdown ", ""),               # none runs
    ("qvm-start work n", "net"),
    ("qvm-start --all --exclude n", "net"),
    ("qvm-start --skip", "--skip-if-running"),
    ("qvm-prefs w", "work"),
    ("qvm-prefs work inc", "include_in_backups"),
    ("qvm-prefs --get work inc", "include_in_backups"),
    ("qvm-prefs work include_in_backups ", "True False"),
    ("qvm-prefs work label r", "red"),
    ("qvm-prefs work netvm ", "net none"),
    ("qvm-prefs work template ", "tpl"),
    ("qvm-prefs work virt_mode p", "pvh pv"),
    ("qvm-prefs work memory ", ""),
    ("qvm-prefs nosuch memory ", None),
    ("qubes-prefs default_d", "default_dispvm"),
    ("qubes-prefs default_netvm ", "net none"),
    ("qubes-prefs default_pool_private ", "linux-kernel varlibqubes"),
    ("qvm-features work f", "fe"),
    ("qvm-service work ", "cups updates"),
    ("qvm-service work cups ", "on off"),
    ("qvm-tags work del ", "created-by-dom0 mine guivm-dom0 audiovm-dom0"),
    ("qvm-tags net add m", "mine"),
    ("qvm-tags work ", "list add del"),
    ("qvm-create -l r", "red"),
    ("qvm-create --label=r", "--label=red"),
    ("qvm-create --lab=r", "--lab=red"),
    ("qvm-create --class D", "DispVM"),
    ("qvm-create --template ", "tpl"),
    ("qvm-create -t tpl -l red ", ""),   # the new name
    ("qvm-create --prop vc", "vcpus="),
    ("qvm-create --prop netvm=", "netvm=net netvm=none"),
    ("qvm-create -p pri", "private="),
    ("qvm-create -p private=v", "private=varlibqubes"),
    ("qvm-clone w", "work"),
    ("qvm-clone work w", ""),
    ("qvm-volume inf", "info"),
    ("qvm-volume info w", "work:"),
    ("qvm-volume info work:p", "work:private"),
    ("qvm-volume info work:private us", "usage"),
    ("qvm-volume config work:private r", "rw revisions_to_keep"),
    ("qvm-volume config work:private rw ", "True False"),
    ("qvm-pool ", "list drivers info add remove set"),
    ("qvm-pool info v", "varlibqubes"),
    ("qvm-pool add x q", "qcow2"),
    ("qvm-pool set varlibqubes -o r", "revisions_to_keep="),
    ("qvm-firewall work add dst", "dsthost= dst4= dst6= dstports="),
    ("qvm-device b", "block"),
    ("qvm-device block att", "attach"),
    ("qvm-block attach w", "work"),
    ("qvm-block attach work --ro -o d", "devtype="),
    ("qvm-ls --format ne", "network"),
    ("qvm-ls --label red bl", "blue black"),
    ("qvm-ls --class AppVM w", "work"),
    ("qvm-ls --fields name,cl", "name,class"),
    ("qvm-ls -O class,priv-p", "class,priv-pool"),
    ("qvm-ls --netvm-is n", "net"),
    ("qvm-run w", "work"),
    ("qvm-run -pu r", "root"),
    ("qvm-run -uroot w", "work"),
    ("qvm-run work l", ""),
    ("qvm-run -p -- w", "work"),
    ("qvm-run --dispvm=", "--dispvm=net"),
    ("qvm-start 'wo", "work"),
    ('qvm-start "wo', "work"),
    ("cloison stat", "status"),
    ("cloison do", "doctor down dom0"),
    ("cloison template b", "build"),
    ("cloison kernel r", "remove"),
    ("cloison kernel remove 6", "6.6.1"),
    ("cloison kernel add linux-image-c", "linux-image-cloud-amd64"),
    ("cloison policy explain w", "work"),
    ("cloison completion f", "fish"),
    ("cloison up --b", "--bare"),
    ("/usr/bin/qvm-start w", "work"),
    ("nosuch-tool w", None),
    ("qvm-start", ""),
]


@pytest.fixture
def qubes(real: Connection) -> Connection:
    real.call("work", "admin.vm.feature.Set", "fe", b"1")
    real.call("work", "admin.vm.feature.Set", "service.cups", b"1")
    real.call("tpl", "admin.vm.feature.Set", "supported-service.updates", b"1")
    real.call("work", "admin.vm.tag.Set", "mine")
    real.call("net", "admin.vm.property.Set", "template_for_dispvms", b"True")
    return real


def test_what_is_offered(qubes: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    for line, expected in LINES:
        if expected is None:             # nothing to ask about: nothing is said
            assert (complete.main(["--line", line, "--breaks", ""]), capsys.readouterr()) == (1, ("", "")), line
        else:
            assert sorted(offered(capsys, line)) == sorted(expected.split()), line


def test_bash_gets_what_is_after_its_own_word_breaks(qubes: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(capsys, "qvm-volume info work:p", "\"'@><=;|&(:") == ["private"]
    assert offered(capsys, "qvm-create --prop netvm=n", "=:") == ["net", "none"]
    assert offered(capsys, "qvm-create --label=r", "=") == ["red"]


@pytest.mark.parametrize("line", [
    "qvm-create -r ", "qvm-volume import work:private ", "qvm-copy-to-vm work ", "qubes-policy-lint ",
])
def test_names_of_files_are_the_shells_own(qubes: Connection, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert complete.main(["--line", line, "--breaks", ""]) == complete.FILES
    assert capsys.readouterr() == ("", "")


def test_every_tool_completes_its_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tool in TOOLS:
        parser = complete.parser_of([tool])
        known = [found.word for found in complete.options(parser)]
        assert offered(capsys, f"{tool} -") == known
        assert "--help" in known


def test_without_qubesd_nothing_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complete.main(["--", "qvm-start", ""]) == 1
    assert capsys.readouterr() == ("", "")
    assert offered(capsys, "qvm-start --sk") == ["--skip-if-running"]


def test_nothing_that_a_shell_would_read_as_more_than_a_word(qubes: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may set features is trusted with qubes, not with this shell."""
    for name in ("fe$(touch x)", "fe;id", "fe`id`", "fe x", "fe\tx", "fe'", "fe\u202ex"):
        try:
            qubes.call("work", "admin.vm.feature.Set", name, b"1")
        except Exception:                # noqa: S112 qubesd refuses some of them by itself
            continue
    assert offered(capsys, "qvm-features work f") == ["fe"]


# -- the shells ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For $PATH: `cloison` as it is here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cloison").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m cloison.cli.main "$@"\n')
    (folder / "cloison").chmod(0o755)
    return folder


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(argv, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.shown = ""

    def type(self, text: str, expected: str) -> None:
        """Ends when the terminal shows it. Raises AssertionError with all that was shown if it never does."""
        os.write(self._master, text.encode())
        start = len(self.shown)
        while expected not in self.shown[start:]:
            assert select.select([self._master], [], [], LIMIT)[0], self.shown
            self.shown += os.read(self._master, 4096).decode("utf-8", "replace")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def environment(qubes: Connection, folder: Path, root: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:{os.environ['PATH']}", "CLOISON_ROOT": str(root), "TERM": "dumb", "HOME": str(folder), "PS1": "> "}


@pytest.fixture
def shell(request: pytest.FixtureRequest, environment: dict[str, str], folder: Path) -> Iterator[Shell]:
    name: str = request.param
    program = shutil.which(name)
    if program is None:                  # bash is always there; the others' packages are suggested, not required
        pytest.fail(f"{name} is not installed")
    (folder / "completion").write_text(script(name))
    plain = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[name]
    result = Shell([program, *plain], environment)
    prepare = {"bash": "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'",
               "zsh": "PS1='> '; autoload -U compinit; compinit -u -D"}[name]
    result.type(f"{prepare}; source {folder}/completion; echo rea''dy\n", "ready\r\n")
    yield result
    result.end()


INSTALLED = ["bash", *(name for name in ("zsh",) if shutil.which(name))]


@pytest.mark.parametrize("shell", INSTALLED, indirect=True)
def test_a_tab_completes(shell: Shell) -> None:
    shell.type("qvm-start --skip-if\t", "qvm-start --skip-if-running ")
    shell.type("wo\t", "work ")
    shell.type("\x15echo a; qvm-volume info work:pri\t", "work:private ")
    shell.type("\x15qvm-create --label=gre\t", "--label=green ")
    shell.type("\x15qvm-prefs work netv\t", "netvm ")
    shell.type("ne\t", "net ")
    shell.type("\x15qvm-create -l red --prop vcp\t", "vcpus=")
    shell.type("\x15qvm-copy-to-vm work $HOME/compl\t", "completion ")


def test_bash_evaluates_no_candidate(folder: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (folder / "cloison").write_text(f"#!/bin/sh\nprintf '%s\\n' 'w$(touch {tmp_path}/ran)' 'w`touch {tmp_path}/ran`'\n")
    run = f"source {folder}/completion; COMP_LINE='qvm-start w' COMP_POINT=11; _cloison; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    (folder / "completion").write_text(script("bash"))
    result = subprocess.run(["bash", "--norc", "-c", run], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.count("touch") == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shell_name", [name for name in ("fish",) if shutil.which(name)])
def test_fish_completes(shell_name: str, folder: Path, environment: dict[str, str]) -> None:
    (folder / "completion").write_text(script("fish"))

    def completions(line: str) -> list[str]:
        result = subprocess.run([shell_name, "--no-config", "-c", f"source {folder}/completion; complete -C '{line}'"],
                                env=environment, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return [text.partition("\t")[0] for text in result.stdout.splitlines()]

    assert completions("qvm-start wo") == ["work"]
    assert completions("qvm-volume info work:pri") == ["work:private"]
    assert completions("cloison stat") == ["status"]
    assert completions("qvm-start --skip") == ["--skip-if-running"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_code_is_for_every_tool(name: str, tmp_path: Path) -> None:
    text = script(name)
    assert set(TOOLS) | {"cloison"} <= set(text.split())
    program = shutil.which(name)
    if program is not None:
        path = tmp_path / "completion"
        path.write_text(text)
        assert subprocess.run([program, "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""
