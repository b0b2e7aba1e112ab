"""qvm-pool against the real qubesd on fake pools, in its present and its older form."""
from __future__ import annotations

from pathlib import Path

import pytest

from cloison.cli import qvm_pool
from cloison.client.connection import Connection


@pytest.mark.parametrize(("older", "words"), [
    ([], []), (["list"], ["list"]), (["-l"], ["list"]), (["--help-drivers"], ["drivers"]), (["-i", "x"], ["info", "x"]),
    (["-a", "x", "file", "-o", "dir_path=/a,revisions_to_keep=2"],
     ["add", "x", "file", "-o", "dir_path=/a", "-o", "revisions_to_keep=2"]),
    (["-o", "dir_path=/a", "--add", "x", "file"], ["add", "-o", "dir_path=/a", "x", "file"]),
    (["-s", "x", "-o", "a=1"], ["set", "x", "-o", "a=1"]), (["--remove", "x"], ["remove", "x"]),
    (["add", "x", "file", "-o", "dir_path=/a,b"], ["add", "x", "file", "-o", "dir_path=/a,b"]), (["--help"], ["--help"]),
    (["set", "-s"], ["set", "-s"]), (["-o"], ["-o"]),
])
def test_the_older_form_is_understood(older: list[str], words: list[str]) -> None:
    assert qvm_pool.modern(older) == words


def test_a_pools_life(real: Connection, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> str:
        assert qvm_pool.main(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    run("-a", "x", "qcow2", "-o", f"dir_path={root}/x,revisions_to_keep=2")
    assert [line.split() for line in run().splitlines()] == [
        ["NAME", "DRIVER"], ["varlibqubes", "qcow2"], ["linux-kernel", "linux-kernel"], ["x", "qcow2"]]
    info = dict(line.split() for line in run("info", "x").splitlines())
    assert info | {"name": "x", "dir_path": f"{root}/x", "driver": "qcow2", "revisions_to_keep": "2"} == info
    assert int(info["usage"]) <= int(info["size"])
    run("set", "x", "-o", "revisions_to_keep=5", "-o", "ephemeral_volatile=True")
    info = dict(line.split() for line in run("-i", "x").splitlines())
    assert (info["revisions_to_keep"], info["ephemeral_volatile"]) == ("5", "True")
    assert run("drivers").splitlines()[0].split() == ["DRIVER", "OPTIONS"]
    run("rm", "x")
    assert "x" not in [line.split()[0] for line in run("ls").splitlines()]


@pytest.mark.parametrize("words", [
    ["add", "x", "nosuch"], ["add", "x", "qcow2"], ["add", "x", "qcow2", "-o", "dir_path=relative"],
    ["add", "x", "qcow2", "-o", "what"],
    ["remove", "varlibqubes"], ["remove", "nosuch"], ["info", "nosuch"], ["set", "varlibqubes", "-o", "dir_path=/x"],
    ["set", "varlibqubes", "-o", "revisions_to_keep=-2"], ["set", "nosuch", "-o", "revisions_to_keep=1"], ["what"],
])
def test_refusals_change_nothing(real: Connection, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    before = real.call("dom0", "admin.pool.Info", "varlibqubes"), real.call("dom0", "admin.pool.List")
    assert qvm_pool.main(words) != 0
    captured = capsys.readouterr()
    assert captured.out == "" and "error: " in captured.err
    after = real.call("dom0", "admin.pool.Info", "varlibqubes"), real.call("dom0", "admin.pool.List")
    assert [line for line in after[0].splitlines() if b"usage" not in line] == [line for line in before[0].splitlines()
                                                                               if b"usage" not in line]
    assert after[1] == before[1]
