"""What a guest does to become a qube, in a throw-away system: names, ids, time zone, markers."""
from __future__ import annotations

import pytest
from tests.guest.inside import inside


def test_names_replace_former_ones_and_keep_the_rest_of_hosts() -> None:
    assert inside("""
import socket
put('/etc/hosts', '127.0.0.1\\tlocalhost\\n127.0.1.1\\tqube\\n10.0.0.1 printer\\n')
identity._read_hosts()
identity._names('qube')
identity._names('work')
result = [socket.gethostname(), get('/etc/hostname'), get('/etc/hosts')]
""") == ["work", "work\n", "127.0.0.1\tlocalhost\n10.0.0.1 printer\n127.0.1.1\twork\n"]


@pytest.mark.parametrize(("zone", "link"), [
    ("Europe/Berlin", "/usr/share/zoneinfo/Europe/Berlin"), ("", "old"), ("No/Such", "old"), ("../../../etc/passwd", "old"),
    ("/etc/passwd", "old"), ("Europe", "old"), ("Europe/../Europe/Berlin", "/usr/share/zoneinfo/Europe/Berlin"),
])
def test_timezone_is_one_that_the_system_knows(zone: str, link: str) -> None:
    assert inside(f"""
tmpfs('/usr/share')
put('/usr/share/zoneinfo/Europe/Berlin')
put('/etc/passwd')
os.symlink('old', '/etc/localtime')
identity._timezone({zone!r})
result = os.readlink('/etc/localtime')
""") == link


def test_boot_id_is_the_one_given() -> None:
    assert inside("""
put('/etc/hosts', '127.0.0.1\\tlocalhost\\n')
identity._get_ready()
identity._write(f'{identity.RUN}/boot_id', '00000000-0000-4000-8000-00000000000a\\n')
result = get('/proc/sys/kernel/random/boot_id')
""") == "00000000-0000-4000-8000-00000000000a\n"


def test_markers_of_kind_persistence_and_services() -> None:
    assert inside("""
for folder in ("/run/qubes", "/run/qubes-service"):      # as _get_ready leaves them
    os.makedirs(folder, exist_ok=True)
identity._markers({'/name': 'work', '/qubes-vm-type': 'TemplateVM', '/qubes-service/cups': '1', '/qubes-service/tracker': '0',
                   '/qubes-service/deep/er': '1', '/other/crond': '1'}, 'full')
result = [sorted(os.listdir('/run/qubes')), sorted(os.listdir('/run/qubes-service'))]
""") == [["persistent-full", "this-is-templatevm"],
         ["cups", "evolution-data-server", "meminfo-writer", "qubes-update-check", "software-rendering", "updates-proxy-setup"]]


def test_clock_is_left_alone_when_it_is_right() -> None:
    """Setting it would be refused here, even as this root."""
    assert inside("import time\nidentity.set_clock(time.time_ns())\nresult = 1") == 1


def test_clock_and_entropy_that_can_not_be_set_are_errors() -> None:
    assert inside("""
result = []
for attempt in (lambda: identity.set_clock(0), lambda: libc.reseed(bytes(64)), lambda: libc.mount('/nowhere', '/etc'),
                lambda: libc.unmount('/etc'), lambda: libc.swapon('/nowhere')):
    try:
        attempt()
    except OSError as error:
        result.append(error.errno > 0)
""") == [True] * 5
