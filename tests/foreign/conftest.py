"""Qubes OS's own client, unmodified, against our qubesd: `make foreign`.

`CLOISON_FOREIGN_CLIENT` names the folder of a checkout of its package (the one that holds `qubesadmin` and `pyproject.toml`),
`CLOISON_FOREIGN_QREXEC` that of its qrexec package (`qrexec`), if its programs for the policy are to be tried too, and
`CLOISON_FOREIGN_PYTHON` an interpreter that has what it imports (lxml, PyYAML, tqdm, xcffib, pyxdg). Nothing of it is in this
repository; without the variables these tests are not collected.
"""
from __future__ import annotations

import os
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from clients import Both

CLIENT, QREXEC, PYTHON = "CLOISON_FOREIGN_CLIENT", "CLOISON_FOREIGN_QREXEC", "CLOISON_FOREIGN_PYTHON"
collect_ignore_glob = [] if os.environ.get(CLIENT) else ["test_*.py"]

_THEIRS = "#!{python}\nimport sys\nsys.path[:0] = {path!r}\nfrom {module} import {function} as main\nsys.exit(main())\n"


@pytest.fixture(scope="session")
def foreign_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with their tools, as their installer would make it."""
    client, python = Path(os.environ[CLIENT]).resolve(), os.environ.get(PYTHON, sys.executable)
    folder = tmp_path_factory.mktemp("foreign")
    version = (client / "version").read_text().strip()
    metadata = folder / f"qubesadmin-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: qubesadmin\nVersion: {version}\n")
    path = [str(client), str(folder), *([str(Path(os.environ[QREXEC]).resolve())] if os.environ.get(QREXEC) else [])]
    scripts = tomllib.loads((client / "pyproject.toml").read_text())["project"]["scripts"]
    scripts |= {f"qvm-{devclass}": scripts["qvm-device"] for devclass in ("block", "usb", "pci")}
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        _executable(folder / name, _THEIRS.format(python=python, path=path, module=module, function=function))
    _executable(folder / "python", f'#!/bin/sh\nPYTHONPATH={":".join(path)} exec {python} "$@"\n')
    return folder


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, foreign_bin: Path) -> Iterator[Both]:
    """A running qubesd of its own, with nothing in it."""
    result = Both(tmp_path_factory.mktemp("root"), foreign_bin)
    up = result.cloison("up", "--bare")
    assert up.returncode == 0, up.stderr
    yield result
    down = result.cloison("down")
    assert down.returncode == 0, down.stderr


@pytest.fixture(scope="module")
def qubes(both: Both) -> Both:
    """Some qubes of every class, made by their client."""
    for line in MAKING.strip().splitlines():
        made = both.theirs(*shlex.split(line))
        assert made.returncode == 0, f"{line}: {made.stderr}"
    return both


MAKING = """
qvm-create --class TemplateVM --label black tpl
qvm-create --label green --template tpl net1 --property provides_network=True
qvm-create --label green --template tpl net2 --property provides_network=True --property netvm=net1
qvm-create --label orange --template tpl app1 --property netvm=net2 --property memory=500
qvm-create --label blue --template tpl app2 --property netvm=net1 --property template_for_dispvms=True
qvm-create --class DispVM --label red --template app2 disp
qvm-create --class StandaloneVM --label gray --template tpl alone
qvm-features app1 servicevm 1
qvm-features app1 empty ''
qvm-service app1 cups on
qvm-service app1 network-manager off
qvm-tags app1 add personal trusted
qvm-notes app1 --set remember
qvm-firewall app1 add accept dsthost=example.com proto=tcp dstports=443
"""
