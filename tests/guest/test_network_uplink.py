"""qubes.WaitForNetworkUplink: it ends with the kernel's news of an interface, not with a clock's tick."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.guest.programs import SOURCE
from tests.patience import PATIENCE

from cloison.guest.rpc import network_uplink
from cloison.guest.rpc.network_uplink import NOT_UP

# In a network of its own, for hours, were it not for news.
WAITER = f"""
import sys
sys.path.insert(0, {SOURCE!r})
from cloison.guest.rpc import network_uplink
sys.exit(network_uplink.main(sys.argv[1], 7200.0))
"""


def interface(folder: Path, name: str, state: str, *, device: bool = True) -> Path:
    (folder / name).mkdir()
    (folder / name / "operstate").write_text(f"{state}\n")
    if device:
        (folder / name / "device").mkdir()
    return folder / name / "operstate"


@pytest.mark.parametrize(("states", "status"), [
    ([], 0), (["up"], 0), (["down"], NOT_UP), (["dormant"], NOT_UP), (["unknown"], NOT_UP), (["down", "up"], 0),
    (["down", "down"], NOT_UP),
])
def test_what_counts_as_up(tmp_path: Path, states: list[str], status: int) -> None:
    interface(tmp_path, "lo", "unknown", device=False)
    for number, state in enumerate(states):
        interface(tmp_path, f"eth{number}", state)
    assert network_uplink.main(str(tmp_path), 0.0) == status


def test_an_interface_that_goes_meanwhile_is_not_up(tmp_path: Path) -> None:
    interface(tmp_path, "eth0", "up").unlink()
    assert network_uplink.main(str(tmp_path), 0.0) == NOT_UP


def test_news_of_the_kernel_end_the_waiting(tmp_path: Path) -> None:
    """The first look finds the interface down, which a pipe in its place tells us; then it comes up, and news of any is enough."""
    state = interface(tmp_path, "eth0", "")
    state.unlink()
    os.mkfifo(state)
    later = tmp_path / "later"
    later.write_text("up\n")
    own_network = ["unshare", "--user", "--map-root-user", "--net"]
    with subprocess.Popen([*own_network, sys.executable, "-ISEc", WAITER, str(tmp_path)]) as waiter:
        try:
            state.write_text("down\n")
            later.rename(state)
            inside = ["nsenter", "--target", str(waiter.pid), "--user", "--net", "--preserve-credentials"]
            subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True, timeout=PATIENCE)
            assert waiter.wait(PATIENCE) == 0
        finally:
            waiter.kill()
