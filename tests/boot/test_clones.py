"""Two qubes restored from one warm image agree on nothing that must differ (decision: restored state is a security matter)."""
from __future__ import annotations

import json
import time

import pytest
from tests.boot.place import BOOT_LIMIT, Place

pytestmark = pytest.mark.boot

TOLERANCE = 30.0        # seconds that may pass on a busy machine from saying what time it is to its being set

# The very first program of a clone. The initial sequence number of a connection is a secret hash of its four-tuple plus a clock
# of 64 ns ticks; the same four-tuple in both clones, and the clock taken off, leaves the hash: equal secrets would show.
PROBE = r"""
import json, os, socket, struct, time, uuid
first = os.getrandom(32).hex()
urandom = open('/dev/urandom', 'rb').read(32).hex()

def isn(port):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.bind(('lo', 0))
    packets.settimeout(120)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(('127.0.0.1', port))
    server.listen(1)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(('127.0.0.1', port + 1))
    before = time.clock_gettime_ns(time.CLOCK_REALTIME)
    client.connect(('127.0.0.1', port))
    after = time.clock_gettime_ns(time.CLOCK_REALTIME)
    while True:
        frame = packets.recv(2048)
        source, target, number = struct.unpack_from('!HHI', frame, 34)
        if frame[23] == 6 and (source, target) == (port + 1, port) and frame[47] & 0x12 == 2:
            break
    # What the clock added is between these two, modulo 2**32: so is the secret part.
    return [(number - (stamp >> 6)) % (1 << 32) for stamp in (after, before)]

def at_random(process):      # what the kernel gave it for its stack canary, and where its program begins
    words = dict(struct.iter_unpack('QQ', open(f'/proc/{process}/auxv', 'rb').read()))
    with open(f'/proc/{process}/mem', 'rb') as memory:
        memory.seek(words[25])
        return [memory.read(16).hex(), words[9]]

print(json.dumps({
    'getrandom': first, 'urandom': urandom, 'uuid4': str(uuid.uuid4()),
    'kernel uuid': open('/proc/sys/kernel/random/uuid').read().strip(),
    'boot id': open('/proc/sys/kernel/random/boot_id').read().strip(),
    'machine-id': open('/etc/machine-id').read().strip(),
    'hostname': socket.gethostname(),
    'firmware uuid': open('/sys/class/dmi/id/product_uuid').read().strip(),
    'link address': open('/sys/class/net/eth0/address').read().strip(),
    'random of an exec': at_random('self'),
    'random of systemd': at_random(1),
    'isn': [isn(41000), isn(42000)],
    'time': time.time(),
}))
"""


def test_two_clones_agree_on_nothing(cloison: Place) -> None:
    words = ["qvm-run", "-p", "--user", "root", "--dispvm", "--", "python3", "-"]
    cloison.ok(words, PROBE.encode())              # the warm image is there now
    first, second = cloison.popen(words), cloison.popen(words)
    answers = []
    for process in (first, second):
        assert process.stdin is not None
        process.stdin.write(PROBE.encode())
        process.stdin.flush()
    for process in (first, second):
        output, errors = process.communicate(timeout=BOOT_LIMIT)
        assert process.returncode == 0, errors.decode()
        answers.append(json.loads(output))
    one, two = answers
    assert one["hostname"].startswith("disp")
    for key in ("getrandom", "urandom", "uuid4", "kernel uuid", "boot id", "machine-id", "hostname", "firmware uuid",
                "link address", "random of an exec"):
        assert one[key] != two[key], key
    assert one["random of systemd"] == two["random of systemd"]      # README, "What you trust" 8: until it is executed anew
    for mine, other in zip(one["isn"], two["isn"], strict=True):
        assert not overlap(mine, other), (mine, other)


def overlap(one: list[int], two: list[int]) -> bool:
    """Whether two ranges of numbers modulo 2**32 have one in common."""
    def within(number: int, limits: list[int]) -> bool:
        return (number - limits[0]) % (1 << 32) <= (limits[1] - limits[0]) % (1 << 32)

    return within(one[0], two) or within(two[0], one)


def test_a_clone_knows_what_time_it_is(cloison: Place) -> None:
    """Its snapshot is minutes old or months."""
    before = time.time()
    untrusted = float(cloison.ok(["qvm-run", "-p", "--dispvm", "--", "date", "+%s.%N"]))
    assert before - TOLERANCE <= untrusted <= time.time() + TOLERANCE


def test_a_paused_qube_learns_the_time_when_it_goes_on(cloison: Place) -> None:
    cloison.create("sleeper")
    cloison.ok(["qvm-start", "sleeper"])
    assert cloison.sh("sleeper", "date -s @1000000000 +%s", user="root") == b"1000000000\n"      # as if it had slept since
    cloison.ok(["qvm-pause", "sleeper"])
    cloison.ok(["qvm-unpause", "sleeper"])
    before = time.time()
    assert before - TOLERANCE <= float(cloison.sh("sleeper", "date +%s.%N")) <= time.time() + TOLERANCE
    cloison.remove("sleeper")


@pytest.mark.slow
def test_programs_of_the_snapshot_are_executed_anew_where_that_is_on(cloison: Place) -> None:
    """One or two minutes after the start."""
    probe = "python3 - <<'END'\n" + PROBE.split("print(json", maxsplit=1)[0] + "print(json.dumps(at_random(1)))\nEND"
    cloison.create("fresh")
    cloison.ok(["qvm-service", "fresh", "fresh-daemons", "on"])
    cloison.ok(["qvm-start", "fresh"])
    before = json.loads(cloison.sh("fresh", probe, user="root"))
    restarted = "while ! journalctl -q -o cat -u systemd-logind | grep -q 'Stopped'; do sleep 5; done"
    cloison.sh("fresh", f"timeout {BOOT_LIMIT:.0f} sh -c \"{restarted}\"", user="root")       # the last one of them
    canary, place = json.loads(cloison.sh("fresh", probe, user="root"))
    assert canary != before[0] and place != before[1]
    assert cloison.sh("fresh", "systemctl --failed --no-legend; echo ok") == b"ok\n"
    cloison.remove("fresh")
