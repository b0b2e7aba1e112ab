"""Calls to and from another machine's qubes through a relay; and calls when a part of the way has been killed."""
from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.place import LIMIT, Place

from cloison.runtime.spawn import listener

pytestmark = pytest.mark.boot

POLICY = """\
test.There * asker far allow
test.Back * far asker allow
test.Echo * asker dom0 allow
"""
# What both services tell: who called, with what; then their input.
TELL = '#!/bin/sh\necho "$QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_ARGUMENT"\ncat\nexit 5\n'
INSTALL = "mkdir -p /usr/local/etc/qubes-rpc; cat > /usr/local/etc/qubes-rpc/{0}; chmod 755 /usr/local/etc/qubes-rpc/{0}"


@pytest.fixture
def relayed(cloison: Place) -> Iterator[Place]:
    """Qubes `asker` and `relay` run; RemoteVM `far` is reached through `relay`, whose transport tells what it is to carry."""
    policy = Path(cloison.paths.config, "policy.d", "10-relays.policy")
    service = Path(cloison.paths.config, "qubes-rpc", "test.Echo")
    for path, text in ((policy, POLICY), (service, "#!/bin/sh\nexec cat\n")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    service.chmod(0o755)
    for name in ("asker", "relay"):
        cloison.create(name)
    cloison.ok(["qvm-create", "--class", "RemoteVM", "--label", "gray", "--property", "relayvm=relay",
                "--property", "transport_rpc=test.Transport", "far"])
    cloison.ok(["qvm-start", "asker", "relay"])
    cloison.sh("relay", INSTALL.format("test.Transport"), TELL.encode(), user="root")
    cloison.sh("asker", INSTALL.format("test.Back"), TELL.encode(), user="root")
    yield cloison
    cloison.ok(["qvm-remove", "--force", "far"])
    cloison.remove("asker", "relay")
    policy.unlink()
    service.unlink()


def test_calls_to_a_remote_qube_and_back(relayed: Place) -> None:
    there = relayed.run(["qvm-run", "-p", "asker", "echo in | qrexec-client-vm far test.There+arg"])
    assert (there.returncode, there.stdout) == (5, b"asker far+test.There+arg\nin\n")
    back = relayed.run(["qvm-run", "-p", "relay", "echo in | qrexec-client-vm --source-qube=far asker test.Back+x"])
    assert (back.returncode, back.stdout) == (5, b"far x\nin\n")
    # The relay is no such caller by itself, and nobody else is its relay.
    for qube, options in (("relay", ""), ("asker", "--source-qube=far"), ("relay", "--source-qube=relay")):
        refused = relayed.run(["qvm-run", "-p", qube, f"qrexec-client-vm {options} asker test.Back+x </dev/null"])
        assert (refused.returncode, refused.stdout) == (126, b""), (qube, options)


def test_after_the_policy_daemon_was_killed_calls_are_decided_again(relayed: Place) -> None:
    found = listener(relayed.paths.socket("policy.sock"))
    assert found is not None
    os.kill(found[0], signal.SIGKILL)
    assert select.select([found[1]], [], [], LIMIT)[0]
    os.close(found[1])
    again = relayed.await_process("python.*cloison.qrexec.policyd")
    assert again != found[0]
    with_retry = "until echo in | qrexec-client-vm dom0 test.Echo; do :; done"      # refused as long as there is none
    assert relayed.sh("asker", with_retry) == b"in\n"


def test_a_killed_agent_leaves_no_caller_waiting(relayed: Place) -> None:
    ended = relayed.run(["qvm-run", "-p", "-u", "root", "asker", "systemctl kill --signal=KILL cloison-agent; exec cat"])
    assert ended.returncode != 0
    relayed.kill("asker")
    relayed.ok(["qvm-start", "asker"])
    assert relayed.sh("asker", "echo up") == b"up\n"
