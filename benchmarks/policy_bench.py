"""Policy: parsing the default set, deciding a request, and asking the daemon, each beside its floor.

The floor of parsing is to split the same lines into words; that of a decision is to look a service up in a dictionary and
to build the answer's tuple; that of the daemon is a process that accepts a connection, reads once, answers as many bytes and
closes. Run: `python benchmarks/policy_bench.py`. Best of several rounds, since only the machine adds time.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import cloison.policy
from cloison.policy.evaluate import Deny, Request, evaluate
from cloison.policy.facts import Facts, Qube
from cloison.policy.memory import MappingReader
from cloison.policy.parse import Root, parse
from cloison.policy.rules import Rule
from cloison.qrexec.policyd.policy_files import LivePolicy, folders, make_folders
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect
from cloison.wire.policy import Query, encode_query

ROUND_TRIPS = 2000        # of one measurement
DEFAULT = Path(cloison.policy.__file__).parent / "default"
REQUESTS = {
    "no rule for the service": Request("nobody.Knows", "+", "work", "untrusted"),
    "denied by a rule": Request("qubes.VMShell", "+", "work", "untrusted"),
    "allowed, redirected": Request("qubes.GetDate", "+", "work", "untrusted"),
    "allowed, disposable": Request("qubes.OpenURL", "+", "work", "@dispvm"),
    "asked, 32 qubes": Request("qubes.Filecopy", "+", "work", "untrusted"),
}


def facts() -> Facts:
    """The host, a disposable template, and thirty ordinary qubes."""
    names = ["dom0", "dvm", "work", "untrusted", *(f"qube{number}" for number in range(28))]
    return Facts({name: qube(number, name) for number, name in enumerate(names)})


def qube(number: int, name: str) -> Qube:
    return Qube(
        name=name, alias=f"uuid:00000000-0000-0000-0000-{number:012}", klass="AppVM" if number else "AdminVM",
        tags=frozenset({"created-by-dom0"}), template_for_dispvms=name == "dvm", default_dispvm="dvm", running=True,
        internal=False, relayvm=None, transport_rpc=None,
    )


def best(task: Callable[[], object], times: int) -> float:
    """Seconds for one."""
    return min(timeit.repeat(task, number=times, repeat=7)) / times


def bare(by_service: Mapping[str, Rule], request: Request) -> Deny:
    """The least a decision can be."""
    return Deny("", "", True, by_service[request.service])


# -- the daemon ----------------------------------------------------------------------------------------------------------

# Answers as qubesd does: events that never come, and a description of 32 qubes.
QUBESD = """
import os, socket, sys, select
events, internal, reply = (sys.argv[1:3] + [sys.argv[3].encode()])
listeners = {}
for path in (events, internal):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(16)
    listeners[sock] = path
kept = []
print("up", flush=True)
while True:
    for sock in select.select(list(listeners), [], [])[0]:
        stream, _ = sock.accept()
        while stream.recv(65536): pass
        if listeners[sock] == events:
            stream.sendall(b"1\\0\\0connection-established\\0\\0")
            kept.append(stream)
        else:
            stream.sendall(b"0\\0" + reply)
            stream.close()
"""
ECHO = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
answer = b"x" * int(sys.argv[2])
print("up", flush=True)
while True:
    stream, _ = listener.accept()
    stream.recv(65536)
    stream.sendall(answer)
    stream.close()
"""


def system_info() -> str:
    """What qubesd would tell of `facts()`."""
    domains = {each.name: {
        "type": each.klass, "tags": sorted(each.tags), "template_for_dispvms": each.template_for_dispvms, "default_dispvm": "dvm",
        "power_state": "Running", "uuid": each.alias.removeprefix("uuid:"), "internal": None, "guivm": "dom0",
        "icon": "appvm-red", "label": "0xcc0000", "relayvm": None, "transport_rpc": None,
    } for each in facts().qubes.values()}
    return json.dumps({"domains": domains})


def round_trip(path: str, request: bytes) -> bytes:
    with connect(path) as sock:
        sock.sendall(request)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return answer


def per_second(path: str, request: bytes) -> float:
    return 1 / best(lambda: round_trip(path, request), ROUND_TRIPS)


def daemon() -> None:
    request = encode_query(Query("work", "dom0", "qubes.FeaturesRequest"))
    with tempfile.TemporaryDirectory() as root:
        paths = Paths.from_environment({"CLOISON_ROOT": root})
        paths.ensure()
        echo = os.path.join(root, "echo.sock")
        policy = paths.socket("policy.sock")
        commands = [
            [sys.executable, "-I", "-c", QUBESD, paths.socket("qubesd.sock"), paths.socket("qubesd.internal.sock"), system_info()],
            [sys.executable, "-I", "-c", ECHO, echo, "80"],
        ]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
        processes.append(subprocess.Popen([sys.executable, "-P", "-m", "cloison.qrexec.policyd.server"],
                                          env={**os.environ, "CLOISON_ROOT": root}, stderr=subprocess.DEVNULL))
        try:
            while not os.path.exists(policy):
                assert processes[-1].poll() is None
            assert b"result=allow" in round_trip(policy, request)
            ours, floor = per_second(policy, request), per_second(echo, request)
            print(f"{'policy daemon, round trips':<28}{ours:8.0f} /s  floor {floor:6.0f} /s")
        finally:
            for process in processes:
                process.terminate()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def from_disk() -> None:
    """What a change of one file costs the next request."""
    with tempfile.TemporaryDirectory() as root:
        where = folders(Paths.from_environment({"CLOISON_ROOT": root}))
        make_folders(where)

        def load() -> None:
            live = LivePolicy(where)
            live.rules()
            live.close()

        live = LivePolicy(where)
        live.rules()
        print(f"{'read and parse from disk':<28}{best(load, 20) * 1e3:8.2f} ms")
        print(f"{'see that nothing changed':<28}{best(live.rules, 2000) * 1e6:8.2f} µs")
        live.close()


def main() -> None:
    files = {path.relative_to(DEFAULT).as_posix(): path.read_bytes() for path in DEFAULT.rglob("*") if path.is_file()}
    reader = MappingReader({Root.MAIN: files, Root.RUNTIME: {}, Root.LEGACY: {}})
    rules, system = parse(reader), facts()
    texts = [content.decode() for content in files.values()]
    parsing = best(lambda: parse(reader), 20)
    floor = best(lambda: [line.split() for text in texts for line in text.splitlines()], 20)
    print(f"{len(rules.all)} rules in {len(files)} files")
    print(f"{'parse the default set':<28}{parsing * 1e3:8.2f} ms  floor {floor * 1e3:6.2f} ms")
    by_service = {request.service: rules.all[0] for request in REQUESTS.values()}
    for name, request in REQUESTS.items():
        spent = best(partial(evaluate, rules, system, request), 2000)
        floor = best(partial(bare, by_service, request), 2000)
        print(f"{name:<28}{spent * 1e6:8.2f} µs  floor {floor * 1e6:6.2f} µs")
    from_disk()
    daemon()


if __name__ == "__main__":
    main()
