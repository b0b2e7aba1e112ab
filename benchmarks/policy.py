"""Policy: how long the default set takes to parse, and a request to be decided, each beside its floor.

The floor of parsing is to split the same lines into words; that of a decision is to look a service up in a dictionary and
to build the answer's tuple. Run: `python benchmarks/policy.py`. Best of several rounds, since only the machine adds time.
"""
from __future__ import annotations

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


if __name__ == "__main__":
    main()
