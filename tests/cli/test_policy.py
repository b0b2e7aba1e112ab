"""cloison policy and the tools for policy files, against the real qubesd on fake parts."""
from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_qubesd import real_qubesd

from cloison.cli import (
    main,
    qrexec_legacy_convert,
    qrexec_policy_graph,
    qubes_policy,
    qubes_policy_editor,
    qubes_policy_lint,
)
from cloison.qrexec.call_log import CallLog, path
from cloison.qrexec.policyd import policy_exec
from cloison.qrexec.policyd.policy_files import folders, make_folders
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect
from cloison.wire.policy import Query, encode_query


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's policy folder; no qubesd runs."""
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    paths = Paths.from_environment()
    paths.ensure()
    make_folders(folders(paths))
    return Path(paths.config, "policy.d")


@pytest.fixture
def qubesd(user: Path, tmp_path: Path) -> Iterator[None]:
    with real_qubesd(tmp_path):
        yield


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


# -- cloison policy ------------------------------------------------------------------------------------------------------


def test_explain(user: Path, qubesd: None, capsys: pytest.CaptureFixture[str]) -> None:
    (user / "30-user.policy").write_text("# mine\nqubes.Filecopy * work net ask default_target=net\n")
    assert main.main(["policy", "explain", "work", "qubes.Filecopy", "net"]) == 0
    lines = said(capsys)
    assert lines[-1].startswith("note:     nobody can be asked now")
    assert lines[:5] == [
        "outcome:  a person is asked", f"decided:  {user}/30-user.policy:2",
        "          qubes.Filecopy * work net ask default_target=net", "choices:  net, tpl", "selected: net"]
    assert main.main(["policy", "explain", "work", "qubes.VMShell", "net"]) == 0
    lines = said(capsys)
    assert lines[0] == "outcome:  denied: 90-default.policy:41 denies it"
    assert lines[1] == "decided:  90-default.policy:41 (shipped)"
    assert "          qubes.VMShell * @anyvm @dispvm allow" in lines
    assert len(lines) <= 24
    (user / "30-user.policy").write_text("wrong")
    assert main.main(["policy", "explain", "work", "qubes.Filecopy", "nothing"]) == 0
    lines = said(capsys)
    assert lines[0] == "note:     there is no qube nothing"
    assert lines[1].startswith("outcome:  denied, as every call is")
    assert f"{user}/30-user.policy:1: " in lines[2]


def test_explain_without_qubesd(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["policy", "explain", "work", "s", "net"]) == 1
    assert "qubesd is not running" in capsys.readouterr().err


def test_check_before_there_is_a_folder(user: Path, qubesd: None, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(user)
    assert main.main(["policy", "check"]) == 1
    assert capsys.readouterr().err == (
        f"cloison: error: there is no policy folder yet: {user}\ncloison: hint: cloison up makes it.\n")


def test_check(user: Path, qubesd: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["policy", "check"]) == 0
    assert said(capsys)[-1].startswith("ok: 56 rules in ")
    (user / "30-user.policy").write_text("s * wrok @anyvm allow target=nte\ns * work @dispvm:tpl allow")
    assert main.main(["policy", "check"]) == 0
    assert said(capsys)[:2] == [
        f"warning: {user}/30-user.policy:1: there is no qube {name}" for name in ("wrok", "nte")]
    (user / "30-user.policy").write_text("s * work @anyvm alow\n\ns * work @nothing allow\n")
    assert main.main(["policy", "check"]) == 1
    lines = said(capsys)
    assert [line.partition(": the ")[0].partition(": '")[0] for line in lines[:2]] == [
        f"error: {user}/30-user.policy:1", f"error: {user}/30-user.policy:3"]
    assert lines[2] == "2 faults: every call is denied until this is corrected"


def test_log(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["policy", "log"]) == 0
    assert said(capsys) == []
    log = CallLog(path(Paths.from_environment()), max_size=700)
    for number in range(6):
        log.write(source=f"q{number % 2}", service="s+\x1b[2J", target=None if number % 3 else "net", requested_target="@default",
                  verdict="deny" if number % 3 else "allow", rule=f"a.policy:{number}", asked=number == 3)
    log.write(source="q1", event="end")
    log.close()
    with open(f"{path(Paths.from_environment())}.1", "ab") as old:
        old.write(b'{"time": 1, "verd')  # what a crash leaves
    assert main.main(["policy", "log", "-n", "3"]) == 0
    lines = said(capsys)
    assert [line.split("  ", 1)[1] for line in lines] == [
        "allow  q1 -> @default => net  s+_[2J  a.policy:3 (asked)", "deny   q0 -> @default  s+_[2J  a.policy:4",
        "deny   q1 -> @default  s+_[2J  a.policy:5"]
    assert main.main(["policy", "log", "--denied", "--source", "q0", "--service", "s", "--json"]) == 0
    assert [json.loads(line)["rule"] for line in said(capsys)] == ["a.policy:2", "a.policy:4"]


def test_the_same_decision_over_and_over_is_one_line_of_the_log(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = CallLog(path(Paths.from_environment()))
    for source, times in (("calm", 1), ("loud", 50), ("calm", 1)):
        for _ in range(times):
            log.write(source=source, service="s", requested_target="dom0", verdict="deny", why="no rule is for this call")
            log.write(source=source, event="end")
    log.close()
    assert main.main(["policy", "log"]) == 0
    first, flood, last = said(capsys)
    assert all(line.endswith("  deny   calm -> dom0  s  no rule is for this call") for line in (first, last))
    assert re.fullmatch(r"[-0-9]{10} [:0-9]{8}  deny   loud -> dom0  s  no rule .*  \(50 times, until [:0-9]{8}\)", flood)
    assert main.main(["policy", "log", "--json", "-n", "100"]) == 0
    assert len(said(capsys)) == 100


def test_an_allowed_call_that_failed_says_so_in_the_log(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = CallLog(path(Paths.from_environment()))
    for target, outcome in (("a", "ended"), ("b", "failed: it is\x1b stuck"), ("b", "ended"), ("c", None)):
        log.write(source="q", service="s", requested_target=target, verdict="allow", rule="r:1")
        if outcome is not None:
            log.write(event="waits", source="q", service="s", requested_target=target, outcome="failed: no end yet")
            log.write(event="end", source="q", service="s", requested_target=target, target="uuid:1", outcome=outcome)
    log.close()
    assert main.main(["policy", "log"]) == 0
    assert [line.split("  ", 1)[1] for line in said(capsys)] == [
        "allow  q -> a  s  r:1", "allow  q -> b  s  r:1, but it failed: it is_ stuck", "allow  q -> b  s  r:1",
        "allow  q -> c  s  r:1"]
    assert main.main(["policy", "log", "--denied"]) == 0
    assert said(capsys) == []


def test_the_log_is_bounded_and_rotates_once(user: Path) -> None:
    file = path(Paths.from_environment())
    logs = [CallLog(file, max_size=2000) for _ in range(3)]
    for number in range(300):
        logs[number % 3].write(source="q", number=number)
    for log in logs:
        log.close()
    assert sorted(name for name in os.listdir(os.path.dirname(file)) if name.startswith("qrexec")) == ["qrexec.log", "qrexec.log.1"]
    assert os.path.getsize(file) + os.path.getsize(f"{file}.1") < 5000
    numbers = [json.loads(line)["number"] for name in (f"{file}.1", file) for line in Path(name).read_text().splitlines()]
    assert numbers == list(range(300 - len(numbers), 300))


def test_a_log_that_cannot_be_written_fails_no_call(user: Path) -> None:
    log = CallLog("/nonexistent/qrexec.log")
    log.write(source="q")
    log.close()


# -- qrexec-policy -------------------------------------------------------------------------------------------------------


def test_the_policy_program(user: Path, qubesd: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy_exec.main(["--", "work", "dom0", "qubes.FeaturesRequest+"]) == 0
    assert "result=allow" in said(capsys)
    assert policy_exec.main(["--just-evaluate", "--assume-yes-for-ask", "work", "net", "qubes.Filecopy"]) == 0
    assert said(capsys) == ["result=allow"]
    assert policy_exec.main(["work", "net", "qubes.Filecopy"]) == 0       # nobody can be asked
    assert said(capsys) == ["result=deny"]
    assert policy_exec.main(["--just-evaluate", "work", "net", "qubes.Filecopy"]) == 1
    assert said(capsys) == ["result=deny"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.policy").write_text("test.S * work net allow")
    assert policy_exec.main([f"--path={other}", "--just-evaluate", "work", "net", "test.S"]) == 0
    assert said(capsys) == ["result=allow"]
    assert policy_exec.main([f"--path={other}/nothing", "work", "net", "test.S"]) == 1


# -- tools ---------------------------------------------------------------------------------------------------------------


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_qubes_policy(user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stdin(monkeypatch, b"s * a b allow")
    assert qubes_policy.main(["--replace", "30-user"]) == 0
    assert qubes_policy.main([]) == 0
    assert {"30-user", "90-default"} <= set(said(capsys))
    assert qubes_policy.main(["--list", "include/"]) == 0
    assert "admin-local-ro" in said(capsys)
    assert qubes_policy.main(["-g", "30-user"]) == 0
    assert said(capsys) == ["s * a b allow"]
    stdin(monkeypatch, b"a b deny")
    assert qubes_policy.main(["-r", "include/mine"]) == 0
    assert (user / "include/mine").read_text() == "a b deny"
    stdin(monkeypatch, b"wrong")
    assert qubes_policy.main(["-r", "30-user.policy"]) == 1
    assert qubes_policy.main(["-d", "30-user"]) == 0
    assert not (user / "30-user.policy").exists()
    assert qubes_policy.main(["x"]) == qubes_policy.main(["-l", "x"]) == qubes_policy.main(["-g"]) == 2


def test_qubes_policy_lint(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("s * a b allow\n!include nothing\n")
    bad.write_text("s * a b allow\nwrong\n")
    assert qubes_policy_lint.main([str(good)]) == 0
    assert qubes_policy_lint.main(["-s", str(good), str(bad)]) == 1
    lines = said(capsys)
    assert lines[0].startswith(f"{bad}:2: error: a rule has at least")
    assert lines[0].endswith(": wrong")
    bad.write_text("a b allow,target=c\n")
    assert qubes_policy_lint.main(["-i", str(bad)]) == 0
    assert qubes_policy_lint.main([str(bad)]) == 1
    assert qubes_policy_lint.main([str(tmp_path / "nothing")]) == 1


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "editor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(program))


def test_the_editor(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = user / "30-user.policy"
    editor(tmp_path, monkeypatch, "echo 's * a b allow' >> \"$1\"")
    assert qubes_policy_editor.main([]) == 0
    assert file.read_text() == "s * a b allow\n"
    editor(tmp_path, monkeypatch, "true")
    assert qubes_policy_editor.main([]) == 0
    assert "nothing was changed" in said(capsys)
    editor(tmp_path, monkeypatch, "echo wrong >> \"$1\"")
    stdin(monkeypatch, b"n\n")
    assert qubes_policy_editor.main([]) == 1
    assert file.read_text() == "s * a b allow\n"
    editor(tmp_path, monkeypatch, f"echo '# theirs' > {file}; echo '# mine' >> \"$1\"")
    stdin(monkeypatch, b"n\n")
    assert qubes_policy_editor.main([]) == 1
    assert file.read_text() == "# theirs\n"


NODES = '  "work" [color = "#cc0000", penwidth = 3];\n  "net" [color = "#cc0000", penwidth = 3];\n'


def test_the_graph(user: Path, qubesd: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (user / "30-user.policy").write_text(
        "test.S * work net allow\ntest.S * net work ask user=root\ntest.S * work @default allow target=net\ntest.S * * * deny\n")
    output = tmp_path / "g"
    arguments = ["--service", "test.S"]
    assert qrexec_policy_graph.main([*arguments, "--output", str(output)]) == 0
    assert output.read_text() == f'digraph g {{\n{NODES}  "work" -> "net" [label="test.S" color=red];\n}}\n'
    assert qrexec_policy_graph.main([*arguments, "--include-ask", "--skip-labels"]) == 0
    assert [line for line in said(capsys) if "->" in line] == [
        '  "net" -> "work" [label="" color=orange];', '  "work" -> "net" [label="" color=red];']
    assert qrexec_policy_graph.main([*arguments, "--full-output", "--source", "net"]) == 0
    assert '  "net" -> "work" [label="test.S ask user=root" color=orange];' in said(capsys)
    assert qrexec_policy_graph.main([*arguments, "--target", "work"]) == 0
    assert said(capsys) == ["digraph g {", "}"]
    assert qrexec_policy_graph.main(["--policy-dir", str(tmp_path / "nothing")]) == 1


def test_a_graph_of_files_alone(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without qubesd, and where nothing was installed yet: a folder of policy and a description of qubes are enough."""
    facts = tmp_path / "facts.json"
    qube = {"type": "AppVM", "uuid": "", "tags": [], "template_for_dispvms": False, "power_state": "Halted", "label": "0xcc0000"}
    facts.write_text(json.dumps({"domains": {"dom0": qube | {"type": "AdminVM"}, "work": qube, "net": qube}}))
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "10-mine.policy").write_text("test.S * work net allow\n")
    for place in (user, user.parents[1] / "run" / "policy.d"):
        if place.is_dir():
            shutil.rmtree(place)
    assert qrexec_policy_graph.main(["--policy-dir", str(folder), "--system-info", str(facts)]) == 0
    assert [line for line in said(capsys) if "->" in line] == ['  "work" -> "net" [label="test.S" color=red];']


def legacy(user: Path) -> Path:
    folder = user.parent / "qubes-rpc" / "policy"
    (folder / "test.S").write_text("$anyvm $default allow,target=net\nwork net ask\n")
    (folder / "test.S+arg").write_text("work net allow\n")
    (folder / "qubes.Filecopy").write_text("work $anyvm deny\n")
    return folder


def test_legacy_files_are_converted(user: Path, qubesd: None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = legacy(user)
    assert qrexec_legacy_convert.main(["--yes"]) == 0
    assert (user / "30-user.policy").read_text().splitlines() == [
        "test.S +arg work net allow", "test.S +arg @anyvm @anyvm deny", "test.S +arg @anyvm @adminvm deny",
        "test.S * @anyvm @default allow target=net", "test.S * work net ask"]
    assert (user / "50-config-filecopy.policy").read_text() == "qubes.Filecopy * work @anyvm deny\n"
    assert sorted(os.listdir(folder)) == ["qubes.Filecopy.rpmsave", "test.S+arg.rpmsave", "test.S.rpmsave"]
    assert qrexec_legacy_convert.main([]) == 0
    assert said(capsys)[-1] == "there are no files of the old format"


def test_a_conversion_is_taken_back(user: Path, qubesd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = legacy(user)
    (user / "30-user.policy").write_text("other.S * work net allow")
    (user / "40-between.policy").write_text("qubes.Filecopy * work net allow\n")
    before = sorted(os.listdir(folder))
    stdin(monkeypatch, b"n\n")
    assert qrexec_legacy_convert.main(["--yes"]) == 1         # the order matters here, so it asks all the same
    assert sorted(os.listdir(folder)) == before
    assert (user / "30-user.policy").read_text() == "other.S * work net allow"
    assert not (user / "50-config-filecopy.policy").exists()


# -- cloison up and down -------------------------------------------------------------------------------------------------


def verdict(paths: Paths) -> bytes:
    with connect(paths.socket("policy.sock")) as sock:
        sock.sendall(encode_query(Query("dom0", "dom0", "nobody.Knows")))
        return sock.recv(100)


def listener(paths: Paths, name: str) -> int:
    """The process that listens there."""
    with connect(paths.socket(name)) as sock:
        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def test_up_brings_policy_and_agent_again_after_a_kill_and_down_ends_them(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DISPLAY", ":nowhere")               # the agent itself shows nothing
    paths = Paths.from_environment()
    try:
        assert main.main(["up", "--bare"]) == 0
        assert verdict(paths) == b"result=deny"
        before = listener(paths, "policy.sock")
        for name in ("policy.sock", "policy-agent.sock"):
            pid = listener(paths, name)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert main.main(["up"]) == 0
        assert verdict(paths) == b"result=deny"
        assert listener(paths, "policy.sock") != before
        assert main.main(["status", "--json"]) == 0
        status = json.loads(said(capsys)[-1])
        assert status["policy"] is status["questions"] is True
    finally:
        assert main.main(["down"]) == 0
    assert not [name for name in os.listdir(paths.run) if name.endswith(".sock")]


@pytest.mark.parametrize(("content", "status"), [(b"", 0), (b"x * a b allow\n", 0), (b"no rule\n", 1)])
def test_a_policy_on_standard_input_is_looked_at_as_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes, status: int,
) -> None:
    (tmp_path / "rules").write_bytes(content)
    with open(tmp_path / "rules", encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert qubes_policy_lint.main(["-"]) == status
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("-:1: error: " if status else "")
    assert qubes_policy_lint.main([str(tmp_path / "rules")]) == status
