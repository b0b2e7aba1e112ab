"""cloison bench: its arithmetic, its conversations with a bare guest, its clock and its cleaning up. No qube runs here."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, Handler, Refused
from tests.qrexec.policy_place import Place

from cloison.cli import bench, bench_bare, bench_compare, bench_measures, bench_memory, bench_qubes, bench_report, main
from cloison.cli.bench_questions import Become, Ping, Question, Run, Stream
from cloison.cli.bench_report import Figure, Target
from cloison.client.connection import Connection
from cloison.errors import CloisonError, HostError, MachineError
from cloison.qrexec.policyd.policy_files import load
from cloison.runtime.paths import Paths
from cloison.wire import admin, agent, qrexec
from cloison.wire.mux import GUEST, HOST, Address, Control, Data, Mux, Opened


@pytest.fixture(autouse=True)
def data(root: Path) -> None:
    """The folder for data, which qubesd makes."""
    (root / "data").mkdir()


@pytest.fixture
def place(root: Path) -> Place:
    """With the policy's folders."""
    return Place(root)


# -- the report


@pytest.mark.parametrize(("samples", "floor", "target", "reached"), [
    ([3.0, 1.0, 2.0], [1.0], None, None),
    ([1.6], [1.0], Target(ratio=1.6), True),
    ([1.7], [1.0], Target(ratio=1.6), False),
    ([30.0], [10.0], Target(ratio=1.5, plus=15), True),
    ([30.1], [10.0], Target(ratio=1.5, plus=15), False),
    ([1.5], [1.0], Target(ratio=1.6, limit=1.4), False),
    ([1.5], [1.0], Target(limit=1.5), True),
    ([1.5], [], Target(limit=1.4), False),
    ([1.5], [], Target(ratio=9.0), None),        # without its floor nothing can be said
])
def test_a_target_is_reached_or_not(
    samples: list[float], floor: list[float], target: Target | None, reached: bool | None
) -> None:
    assert Figure("it", "s", samples, floor, target).reached is reached


def test_the_median_is_compared_with_the_floor_s_median() -> None:
    figure = Figure("it", "s", [9.0, 2.0, 3.0], [1.0, 100.0, 2.0])
    assert (figure.median, figure.floor_median, figure.ratio) == (3.0, 2.0, 1.5)
    assert Figure("it", "s", [1.0]).ratio is None


def test_the_table_tells_figures_targets_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    bench_report.show([
        Figure("start", "s", [0.5], [0.25], Target(ratio=1.6, limit=1.0)), Figure("call", "ms", [20.0], [10.0], Target(1.5, 15)),
        Figure("stream", "MB/s", [54.0]),
    ], {"host_cpus": 2}, ["a note"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "start" and "2.00" in lines[1] and "1.6 x floor, 1 s" in lines[1]
    assert lines[1].endswith("MISSED")
    assert "1.5 x floor + 15 ms" in lines[2] and lines[2].endswith("ok")
    assert lines[3].split() == ["stream", "54.0", "MB/s"]
    assert lines[5:] == ["host cpus 2", "- a note"]


def test_json_has_every_sample() -> None:
    figures = [Figure("start", "s", [0.5, 0.7], [0.25], Target(ratio=1.6))]
    made = json.loads(json.dumps(bench_report.as_json(figures, {"runs": 2}, ["note"])))
    assert made["facts"] == {"runs": 2} and made["notes"] == ["note"]
    assert made["figures"] == [{
        "name": "start", "unit": "s", "median": 0.6, "floor": 0.25, "ratio": 2.4, "reached": False, "samples": [0.5, 0.7],
        "floor_samples": [0.25], "target": {"ratio": 1.6, "plus": 0.0, "limit": None}}]


# -- compared with a former run


def former(tmp_path: Path, figures: list[Figure], facts: dict[str, object] | None = None) -> str:
    """A file as --json prints it."""
    path = tmp_path / "before.json"
    path.write_text(json.dumps(bench_report.as_json(figures, facts or {}, [])))
    return str(path)


@pytest.mark.parametrize(("before", "now", "unit", "times"), [
    (Figure("it", "s", [2.0], [1.0]), Figure("it", "s", [6.0], [2.0]), "x floor", 1.5),            # slower, for a slower machine
    (Figure("it", "s", [2.0], [1.0]), Figure("it", "s", [4.0], [2.0]), "x floor", 1.0),
    (Figure("it", "MB", [80.0]), Figure("it", "MB", [60.0]), "MB", 0.75),
    (Figure("it", "MB", [80.0], [40.0]), Figure("it", "MB", [60.0]), "MB", 0.75),                  # one floor is no comparison
    (Figure("it", "MB/s", [50.0], [100.0]), Figure("it", "MB/s", [25.0], [100.0]), "x floor", 2.0),
    (Figure("it", "MB/s", [50.0]), Figure("it", "MB/s", [100.0]), "MB/s", 0.5),
])
def test_a_figure_is_compared_by_its_floor(tmp_path: Path, before: Figure, now: Figure, unit: str, times: float) -> None:
    [change] = bench_compare.changes(bench_compare.read(former(tmp_path, [before])), [now, Figure("new", "s", [1.0])])
    assert (change.name, change.unit, change.times) == ("it", unit, times)


def test_what_got_worse_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, object] = {"template": "debian-12", "qemu": "7.2", "runs": 3}
    run = bench_compare.read(former(tmp_path, [Figure("start", "s", [1.0], [1.0]), Figure("call", "ms", [100.0])], facts))
    found = bench_compare.changes(run, [Figure("start", "s", [1.15], [1.0]), Figure("call", "ms", [115.2])])
    assert bench_compare.worse(found, 0.15) == ["call"]
    assert [each["worse"] for each in bench_compare.as_json(found, 0.15)] == [False, True]
    bench_compare.show(found, run, {"template": "debian-12", "qemu": "10.0", "runs": 5}, 0.15)
    heading, start, call, *more = capsys.readouterr().out.splitlines()
    assert heading.split() == ["figure", "before", "now", "times", "before"]
    assert start.split() == ["start", "1.00", "x", "floor", "1.15", "x", "floor", "1.15"]
    assert call.split() == ["call", "100.00", "ms", "115.20", "ms", "1.15", "WORSE"]
    assert more == ["- not alike: qemu was 7.2 and is 10.0"]


@pytest.mark.parametrize("as_object", [True, False])
def test_a_run_that_got_worse_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_object: bool) -> None:
    run = bench_compare.read(former(tmp_path, [Figure("call", "ms", [100.0])]))
    for now, before, status in ((120.0, run, 1), (110.0, run, 0), (120.0, None, 0)):
        assert bench.tell([Figure("call", "ms", [now])], {}, before, 0.15, as_object=as_object) == status
        said = capsys.readouterr().out
        assert (("compared" in json.loads(said)) if as_object else ("times before" in said)) is (before is not None)


ODD = '{"facts": {}, "figures": [{"name": "x", "median": %s, "floor": %s}]}'


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 9999, '{"facts": 3, "figures": []}', ODD % (0, "null"), ODD % (1, "true"),
                                  ODD % ("NaN", "null"), ODD % ("Infinity", "null"), ODD % (1, 0)])
def test_what_is_no_former_run_is_refused_before_anything_is_measured(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "before.json"
    path.write_text(text)
    assert main.main(["bench", "--compare", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{path} does not hold what the bench prints" in said and "cloison bench --json > FILE" in said


def test_a_former_run_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "--compare", str(tmp_path / "none")]) == 1
    assert "can't be read: No such file" in capsys.readouterr().err


# -- conversations with a bare guest


def converse(question: Question, guest: Mux, host: Mux) -> bool:
    """Hand over what the guest has said; whether that answered the question."""
    return any([question.answered(host, event) for event in host.receive(guest.take_output())])


def test_a_ping_is_answered_by_any_report() -> None:
    host, guest = Mux(HOST), Mux(GUEST)
    Ping().begin(host)
    assert guest.receive(host.take_output()) == [Control(agent.ping())]
    guest.control(agent.report("pong"))
    assert converse(Ping(), guest, host)


def test_become_is_answered_by_running_and_failed_is_an_error() -> None:
    host, guest = Mux(HOST), Mux(GUEST)
    Become().begin(host)
    [event] = guest.receive(host.take_output())
    assert isinstance(event, Control)
    do, fields = agent.parse_order(event.untrusted)
    assert do == "become" and agent.identity(fields).qubesdb["/name"] == "bench"
    guest.control(agent.report("running"))
    assert converse(Become(), guest, host)
    guest.control(agent.report("failed", "no disk"))
    with pytest.raises(MachineError, match="no disk"):
        converse(Become(), guest, host)


def called(question: Run | Stream) -> tuple[Mux, Mux, int]:
    """A host that has asked, and a guest that has taken up the call: its data channel."""
    host, guest = Mux(HOST), Mux(GUEST)
    question.begin(host)
    opened, data = guest.receive(host.take_output())
    assert isinstance(opened, Opened) and opened.address.port == qrexec.CONTROL_PORT
    assert isinstance(data, Data)
    decoder = qrexec.Decoder(qrexec.FROM_DAEMON)
    decoder.feed(data.untrusted)
    assert isinstance(decoder.next_message(), qrexec.Hello)
    request = decoder.next_message()
    assert isinstance(request, qrexec.Exec) and request.command == f"user:{question.command}"
    channel = guest.open(Address(request.domain, 0, request.port))
    guest.send(channel, qrexec.hello(qrexec.VERSION))
    return host, guest, channel


def test_a_run_is_answered_by_the_first_byte_of_output() -> None:
    question = Run("echo here")
    host, guest, channel = called(question)
    assert not converse(question, guest, host)
    guest.send(channel, b"".join(qrexec.data(qrexec.STDERR, b"warning")))
    assert not converse(question, guest, host)
    guest.send(channel, b"".join(qrexec.data(qrexec.STDOUT, b"h")))
    assert converse(question, guest, host)


def test_a_run_that_ends_without_output_is_an_error() -> None:
    question = Run("false")
    host, guest, channel = called(question)
    guest.send(channel, qrexec.exit_code(1))
    with pytest.raises(MachineError, match="ended with 1"):
        converse(question, guest, host)


def test_a_stream_sends_all_its_input_with_credit_and_ends_with_the_program() -> None:
    size = 3_000_000
    question = Stream("cat", size)
    host, guest, channel = called(question)
    guest.send(channel, b"".join(qrexec.data(qrexec.STDOUT, b"\n")))
    decoder, got, ended = qrexec.Decoder(qrexec.FROM_CALLER), 0, False
    assert not converse(question, guest, host)
    while not ended:
        for event in [*guest.receive(host.take_output()), *host.drained()]:
            if isinstance(event, Data):
                decoder.feed(event.untrusted)
                guest.consumed(channel, len(event.untrusted))
            elif not isinstance(event, Opened):
                question.answered(host, event)
        while message := decoder.next_message():
            if isinstance(message, qrexec.Data):
                got, ended = got + len(message.payload), not message.payload
        assert not converse(question, guest, host)
    assert got == size
    guest.send(channel, qrexec.exit_code(0))
    assert converse(question, guest, host)
    assert question.ended >= question.begun > 0


def test_an_image_is_found_by_its_template(paths: Paths) -> None:
    for name, template, memory in (("a", "debian-12", 400), ("b", "other", 800)):
        folder = Path(paths.warm, name)
        folder.mkdir()
        entry = [f"/pool/vm-templates/{template}/root.1.raw", 1, 2, 3]
        (folder / "manifest.json").write_text(json.dumps({
            "root": [entry], "boot": [["/k/vmlinuz", 1], ["/k/initramfs", 1], ["/k/modules.img", 1]],
            "shape": ["qemu", "-accel", "tcg", "-smp", "2", "-m", f"{memory}M"]}))
    image = bench_bare.find_image(paths, "debian-12")
    assert (image.folder, image.memory, image.vcpus, image.accelerator) == (f"{paths.warm}/a", 400, 2, "tcg")
    assert (image.root, image.modules) == (("/pool/vm-templates/debian-12/root.1.raw",), "/k/modules.img")
    with pytest.raises(MachineError, match="no warm image"):
        bench_bare.find_image(paths, "debian-1")


# -- clock and memory


def test_a_tool_is_timed_to_its_first_byte_its_last_and_its_end() -> None:
    one = bench_qubes.timed([sys.executable, "-c", "print('x' * 100000)"], keep=3)
    assert one.output == b"xxx" and 0 < one.first <= one.last <= one.exit


def test_a_tool_that_fails_is_no_figure() -> None:
    with pytest.raises(bench_qubes.ToolFailed, match="ended with 3: oh dear"):
        bench_qubes.timed([sys.executable, "-c", "import sys; print('oh dear', file=sys.stderr); sys.exit(3)"])


def test_memory_of_a_process_and_those_below_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        assert child.pid in bench_memory.descendants(os.getpid())
        assert 100_000 < bench_memory.pss(child.pid) < 100_000_000
    finally:
        child.communicate(b"\n")
    with pytest.raises(HostError, match="can't be looked at"):
        bench_memory.pss(child.pid)


def test_the_listener_of_a_socket_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(HostError, match="nobody answers"):
        bench_memory.listener(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert bench_memory.listener(path) == os.getpid()


# -- qubes of its own


def test_two_benches_do_not_run_at_once(paths: Paths) -> None:
    with bench_qubes.alone(paths), pytest.raises(HostError, match="another bench"), bench_qubes.alone(paths):
        pass
    with bench_qubes.alone(paths):
        pass


def test_its_qubes_are_removed_and_no_others(qubesd: FakeQubesd) -> None:
    qubesd.qubes["bench-old"] = {"class": "AppVM", "state": "Running"}     # left by a bench that was killed
    qubesd.tags["bench-old"] = [bench_qubes.TAG]
    before = {name for name in qubesd.qubes if name != "bench-old"}
    connection = Connection()
    with pytest.raises(KeyboardInterrupt), bench_qubes.Qubes(connection, "debian-12") as qubes:
        assert set(qubesd.qubes) == before
        name = qubes.app("bench-app")
        assert name.startswith("bench-app-") and set(qubesd.qubes) == {*before, name}
        connection.call(name, "admin.vm.Start")
        raise KeyboardInterrupt
    assert set(qubesd.qubes) == before


def test_a_qube_that_cannot_be_removed_is_told_and_the_others_go(qubesd: FakeQubesd, capsys: pytest.CaptureFixture[str]) -> None:
    def remove(fake: FakeQubesd, request: admin.Request) -> bytes:
        if request.dest.startswith("bench-2"):
            raise Refused("QubesVMInUseError", f"{request.dest} is in use")
        del fake.qubes[request.dest]
        return admin.ok(b"")

    qubesd.answers["admin.vm.Remove"] = remove
    with bench_qubes.Qubes(Connection(), "debian-12") as qubes:
        names = [qubes.app(f"bench-{number}") for number in range(3)]
    assert [name for name in qubesd.qubes if name.startswith("bench-")] == names[2:]
    assert f"{names[2]} is left: {names[2]} is in use" in capsys.readouterr().err


def test_a_qube_whose_start_ends_while_it_is_removed_is_removed(qubesd: FakeQubesd) -> None:
    before = set(qubesd.qubes)
    refusals = [Refused("QubesVMInUseError", "it is Running by now")]

    def remove(fake: FakeQubesd, request: admin.Request) -> bytes:
        if refusals:
            raise refusals.pop()
        del fake.qubes[request.dest]
        return admin.ok(b"")

    qubesd.answers["admin.vm.Remove"] = remove
    with bench_qubes.Qubes(Connection(), "debian-12") as qubes:
        qubes.app("bench-app")
    assert set(qubesd.qubes) == before


def test_a_start_under_way_is_waited_for(qubesd: FakeQubesd) -> None:
    before = set(qubesd.qubes)

    def started(fake: FakeQubesd, request: admin.Request) -> bytes:
        for name in set(fake.qubes) - before:
            fake.qubes[name]["state"] = "Running"
        return admin.event("", "connection-established") + admin.event("sys-net", "domain-start")

    qubesd.answers["admin.Events"] = started
    with bench_qubes.Qubes(Connection(), "debian-12") as qubes:
        qubesd.qubes[qubes.app("bench-app")]["state"] = "Transient"
    assert set(qubesd.qubes) == before
    methods = [method for _, method, _, _ in qubesd.calls]
    assert methods.index("admin.Events") < methods.index("admin.vm.Kill")


def reports(*usages: dict[str, int]) -> Handler:
    """Statistics that qubesd would report: percent of each qube, a round after another."""
    events = [admin.event(name, "vm-stats", [("cpu_usage", str(percent))]) for usage in usages for name, percent in usage.items()]
    return lambda _fake, _request: admin.event("", "connection-established") + b"".join(events)


def test_a_qube_is_idle_when_two_reports_say_so(qubesd: FakeQubesd) -> None:
    qubesd.answers["admin.vm.Stats"] = reports({"work": 0, "sys-net": 0}, {"work": 50, "sys-net": 2}, {"work": 5, "sys-net": 99})
    bench_measures._until_idle(Connection(), ["work", "sys-net"])
    qubesd.answers["admin.vm.Stats"] = reports({"work": 0}, {"work": 50}, {"work": 6})
    with pytest.raises(HostError, match="1 qubes do not become idle, work for one"):
        bench_measures._until_idle(Connection(), ["work"])


def test_a_qube_of_somebody_else_stays_whatever_its_name(qubesd: FakeQubesd) -> None:
    for name in ("bench-app", "bench-app-00000000", "bench-first"):
        qubesd.qubes[name] = dict(qubesd.qubes["work"])
        qubesd.tags[name] = []
    before = set(qubesd.qubes)
    with bench_qubes.Qubes(Connection(), "debian-12") as qubes:
        qubes.app("bench-app")
    assert set(qubesd.qubes) == before


def test_a_bench_killed_before_its_qube_had_the_tag(qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The qube is there, without a tag: the next bench knows it by the name that was written down before."""
    before = set(qubesd.qubes)

    def die(_fake: FakeQubesd, _request: admin.Request) -> bytes:
        raise Refused("QubesException", "killed")

    qubesd.answers["admin.vm.tag.Set"] = die
    with pytest.raises(CloisonError, match="killed"):
        bench_qubes.Qubes(Connection(), "debian-12").app("bench-app")
    [left] = set(qubesd.qubes) - before
    assert qubesd.tags.get(left, []) == []
    with bench_qubes.Qubes(Connection(), "debian-12"):
        assert set(qubesd.qubes) == before


def test_what_its_qubes_may_is_allowed_until_they_go(qubesd: FakeQubesd, place: Place) -> None:
    """A policy file beside the user's, about these qubes only; also the file of a bench that was killed goes."""
    place.write("qubes.Filecopy * work @anyvm deny\n")
    with pytest.raises(KeyboardInterrupt), bench_qubes.Qubes(Connection(place.paths), "debian-12") as qubes:
        qubes.allow("qubes.Filecopy * bench-app-00000000 @default allow target=bench-other-00000000")
        assert os.listdir(place.runtime) == [bench_qubes.RULES]
        places = [rule.place for rule in load(place.paths).for_service("qubes.Filecopy")]
        assert places[:2] == [f"run/{bench_qubes.RULES}:1", "30-user.policy:1"]
        raise KeyboardInterrupt
    assert os.listdir(place.runtime) == []
    (place.runtime / bench_qubes.RULES).write_text("qubes.Filecopy * bench-app-11111111 @default allow target=bench-other-11\n")
    with bench_qubes.Qubes(Connection(place.paths), "debian-12"):
        assert os.listdir(place.runtime) == []
    assert sorted(os.listdir(place.user)) == ["30-user.policy", "include"]


def test_the_template_is_the_default_one_or_the_only_one(qubesd: FakeQubesd) -> None:
    qubesd.qubes["dom0"]["default_template"] = ""
    assert bench_qubes.choose_template(Connection()) == "debian-12"
    qubesd.qubes["other"] = {"class": "TemplateVM", "state": "Halted"}
    qubesd.qubes["dom0"]["default_template"] = "other"
    assert bench_qubes.choose_template(Connection()) == "other"
    qubesd.qubes["dom0"]["default_template"] = ""
    with pytest.raises(HostError, match="no default template"):
        bench_qubes.choose_template(Connection())


# -- the command


@pytest.mark.parametrize("words", [["--runs", "0"], ["--runs", "x"], ["--qubes", "201"], ["--only", "nothing"]])
def test_wrong_words_are_refused(qubesd: FakeQubesd, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", *words]) == 2
    assert not qubesd.calls
    assert words[1] in capsys.readouterr().err


def test_help_tells_the_definitions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    assert "Floor of calls" in said and all(name in said for name in bench_measures.MEASURES)


def test_without_qubesd_it_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench"]) == 1
    assert "not running" in capsys.readouterr().err
