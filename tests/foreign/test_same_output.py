"""Our tools print what Qubes OS's print, byte for byte, and end with the same status, for the same qubes."""
from __future__ import annotations

import shlex

import pytest
from clients import Both

from cloison.client.connection import Connection
from cloison.runtime.paths import Paths

pytestmark = pytest.mark.slow

# Exit status and standard output must be the same. Errors may be told in other words.
# Not here: `qvm-ls --prefs NAME=`, which theirs documents as "has no value" and never finds.
READS = """
qvm-ls
qvm-ls --raw-list
qvm-ls --raw-data
qvm-ls --format network
qvm-ls --format kernel
qvm-ls --format full
qvm-ls --format prefs
qvm-ls --format disk
qvm-ls -n
qvm-ls -d
qvm-ls -k
qvm-ls --tree
qvm-ls --tree --format network
qvm-ls --fields name,flags,memory
qvm-ls -O name,priv-pool,root-pool,ip,mac
qvm-ls -O name,nosuch,label
qvm-ls --sort LABEL
qvm-ls --sort label --reverse
qvm-ls -O name,maxmem --sort maxmem
qvm-ls app1 tpl
qvm-ls app1 nosuch
qvm-ls --exclude app1
qvm-ls --all --exclude app1
qvm-ls 'app*'
qvm-ls --class AppVM TemplateVM
qvm-ls --label orange blue
qvm-ls --template-source tpl
qvm-ls --netvm-is net1
qvm-ls --netvm-is net1 --halted
qvm-ls --running
qvm-ls --prefs netvm=net1
qvm-ls --features servicevm=1
qvm-ls --features 'empty=""'
qvm-ls --servicevm y
qvm-ls --servicevm n
qvm-ls --internal y
qvm-ls --tags personal
qvm-ls --exclude-tags personal
qvm-ls --pending-update
qvm-ls --format nosuch
qvm-ls --raw-l
qvm-ls --raw
qvm-ls --tree --raw-list
qvm-ls --tree --raw-data
qvm-ls --all dom0
qvm-ls '@anyvm'
qvm-ls 'a b'
qvm-ls -O 'name, label'
qvm-ls -O ''
qvm-ls --prefs nosuch=1
qvm-ls --features servicevm
qvm-prefs app1
qvm-prefs dom0
qvm-prefs tpl
qvm-prefs disp
qvm-prefs alone
qvm-prefs --hide-default app1
qvm-prefs app1 label
qvm-prefs app1 netvm
qvm-prefs tpl netvm
qvm-prefs app1 kernelopts
qvm-prefs app1 default-dispvm
qvm-prefs app1 nosuch
qvm-prefs nosuch
qvm-prefs app1 name x y
qvm-prefs --get app1 memory
qvm-prefs --help-properties app1
qubes-prefs
qubes-prefs --hide-default
qubes-prefs default_netvm
qubes-prefs nosuch
qubes-prefs --help-properties
qvm-features app1
qvm-features app1 servicevm
qvm-features app1 empty
qvm-features app1 nosuch
qvm-features nosuch
qvm-features dom0
qvm-features --unset app1
qvm-tags app1
qvm-tags app1 list
qvm-tags app1 ls personal
qvm-tags app1 list nosuch
qvm-tags nosuch
qvm-service app1
qvm-service --list app1
qvm-service app1 cups
qvm-service app1 network-manager
qvm-service app1 nosuch
qvm-service nosuch
qvm-service --enable app1
qvm-notes --print app1
qvm-notes --print nosuch
qvm-check app1
qvm-check nosuch
qvm-check app1 nosuch
qvm-check --running app1 dom0
qvm-check --running app1
qvm-check --template tpl app1
qvm-check --networked app1 tpl
qvm-check --quiet app1
qvm-check --all
qvm-check --all --running
qvm-check
qvm-check '*'
qvm-check 'a b'
qvm-create
qvm-create --class DispVM --template app1 --label red new
qvm-create --class AdminVM --label red new
qvm-create --label red --pool private new
qvm-create --label red x-dm
qvm-create --label red ''
qvm-create --label red
qvm-create new
qvm-create --help-classes
qvm-create --label red app1
qvm-create --label nosuch new
qvm-create --label red --template nosuch new
qvm-create --label red 1new
qvm-create --label red --property nosuch new
qvm-create --label red --template tpl --pool private=nosuch new
qvm-create --label red --template tpl -P nosuch new
qvm-create --label red --template tpl --root-copy-from /etc/hostname new
qvm-clone nosuch new
qvm-clone app1 app2
qvm-clone app1
qvm-clone app1 ''
qvm-clone dom0 new
qvm-clone -p private=nosuch app1 new
qvm-clone app1 2new
qvm-remove
qvm-remove nosuch
qvm-remove --force dom0
qvm-remove --force tpl
qvm-remove --force app1 --all
qvm-start nosuch
qvm-start dom0
qvm-start --drive nosuch:/x app1
qvm-start --cdrom nosuch app1
qvm-start
qvm-shutdown nosuch
qvm-shutdown app1
qvm-shutdown --all --dry-run
qvm-kill app1
qvm-kill dom0
qvm-kill --all
qvm-start --install-windows-tools app1
qvm-start --drive hd:x:y app1
qvm-pause app1
qvm-unpause app1
qvm-unpause --all
qvm-run nosuch true
qvm-run --no-autostart app1 true
qvm-run --all --exclude app1 true
qvm-run app1 true
qvm-run --dispvm=nosuch true
qvm-run --dispvm=tpl true
qvm-run --color-output 31 app1 true
qvm-run --color-stderr 31 -n app1 true
qvm-run -n dom0 true
qvm-pool
qvm-pool list
qvm-pool drivers
qvm-pool info linux-kernel
qvm-pool info nosuch
qvm-pool add new nosuch
qvm-pool -l
qvm-pool -i linux-kernel
qvm-pool --help-drivers
qvm-pool -a x
qvm-pool set varlibqubes -o name=x
qvm-volume
qvm-volume list
qvm-volume list app1
qvm-volume info app1:private
qvm-volume info app1:private size
qvm-volume info app1:nosuch
qvm-volume info nosuch:private
qvm-volume info app1:
qvm-volume info :private
qvm-volume info app1:private:x
qvm-volume list -p nosuch
qvm-volume resize app1:root 1G
qvm-volume resize app1:kernel 1G
qvm-volume clone app1:private nosuch:private
qvm-volume config app1:private nosuch 1
qvm-volume revert app1:private
qvm-firewall app1
qvm-firewall app1 list
qvm-firewall --raw app1 list
qvm-firewall app1 del --rule-no 99
qvm-firewall app1 add nosuch
qvm-firewall nosuch
qvm-device block
qvm-device block list app1
qvm-device block attach nosuch dom0:sda
qvm-device block attach app1 x
qvm-device block info x
qvm-device block assign --required --ask app1 dom0:sda
qvm-device nosuch list
qvm-device --list-device-classes
qvm-device --list-classes
qvm-block list
qvm-pci list
qvm-usb list
qvm-block attach app1 dom0:sda
qvm-block detach app1
qvm-block assign app1 dom0:sda
qvm-block unassign app1
"""
TRACEBACK = 1                            # what Python ends with when a tool of theirs breaks down; ours tells and ends as it will


@pytest.mark.parametrize("line", READS.strip().splitlines())
def test_reads(qubes: Both, line: str) -> None:
    words = shlex.split(line)
    theirs, ours = qubes.theirs(*words), qubes.ours(*words)
    assert "Traceback" not in ours.stderr
    if "Traceback" in theirs.stderr:
        assert ours.returncode != 0
        assert ours.stderr.count("error: ") == 1
        return
    assert ours.stdout == theirs.stdout
    assert ours.returncode == theirs.returncode, (theirs.stderr, ours.stderr)
    assert bool(ours.stderr) == bool(theirs.stderr) or "please wait" in theirs.stderr, (theirs.stderr, ours.stderr)


# The same steps on two qubes, one with each client; `{}` is the qube's name. The qubes must agree after each.
CHANGES = """
qvm-create --label red --template tpl --property memory=300 --property default_user=me {}
qvm-prefs {} netvm net1
qvm-prefs {} netvm none
qvm-prefs --default {} netvm
qvm-prefs {} label blue
qvm-prefs {} label nosuch
qvm-prefs {} memory many
qvm-prefs {} qid 5
qvm-prefs --set {} vcpus 3
qvm-prefs -D {} vcpus
qvm-prefs {} include_in_backups off
qvm-features {} one 1
qvm-features {} two some=text,%d
qvm-features --unset {} one
qvm-features --unset {} one
qvm-tags {} add x y
qvm-tags {} del x
qvm-tags {} del x
qvm-tags {} add a+b
qvm-service {} cups on
qvm-service --disable {} cups
qvm-service --unset {} cups
qvm-service {} cups maybe
qvm-notes {} --set one
qvm-notes {} --append two
qvm-notes {} --import /etc/os-release
qvm-notes --force {} --delete
qvm-firewall {} add accept dst4=192.0.2.0/24 proto=tcp dstports=80-90
qvm-firewall {} add --before 0 drop dsthost=example.com
qvm-firewall {} add accept proto=icmp icmptype=8
qvm-firewall {} add accept specialtarget=dns expire=4000000000 comment=resolver
qvm-firewall {} del --rule-no 0
qvm-firewall {} del accept proto=icmp icmptype=8
qvm-firewall {} add accept dst4=300.1.1.1
qvm-firewall {} add accept dsthost=192.0.2.1/24
qvm-firewall {} add drop dst6=2001:db8::1/32
qvm-firewall {} reset
qvm-volume resize {}:private 3G
qvm-volume resize {}:private 1G
qvm-volume config {}:private revisions_to_keep 2
qvm-volume config {}:private revisions_to_keep many
qvm-volume import --size 1048576 {}:private /dev/zero
qvm-volume import --no-resize {}:private /etc/hostname
qvm-volume revert {}:private
qvm-block assign --only-port {} dom0:sda -o read-only=yes
qvm-block unassign {} dom0:sda
qvm-create --class DispVM --template app2 --label red {}-disp
qvm-remove --force {}-disp
qvm-clone {} {}-copy
qvm-clone --class StandaloneVM tpl {}-alone
qvm-clone --ignore-errors -P varlibqubes {} {}-copy2
qvm-remove --force {}-copy {}-copy2 {}-alone
qvm-create --class StandaloneVM --template tpl --label red {}-alone
qvm-create --class TemplateVM --root-copy-from /etc/hostname --label red {}-tpl
qvm-remove --force {}-alone {}-tpl
"""
STATE = (
    "qvm-prefs {}", "qvm-features {}", "qvm-tags {}", "qvm-service {}", "qvm-notes -p {}", "qvm-firewall --raw {} list",
    "qvm-volume info {}:private size", "qvm-volume info {}:private revisions_to_keep", "qvm-volume info {}:root vid",
)
ITS_OWN = ("qid", "uuid", "mac", "ip", "visible_ip")


def test_changes(qubes: Both) -> None:
    names = ("theirs", "itself")         # of one length, so that tables agree
    for line in CHANGES.strip().splitlines():
        runs = (qubes.theirs, qubes.ours)
        results = [run(*shlex.split(line.replace("{}", name)), text="") for run, name in zip(runs, names, strict=True)]
        outputs = [result.stdout.replace(name, "NAME") for result, name in zip(results, names, strict=True)]
        assert outputs[0] == outputs[1], line
        if "Traceback" not in results[0].stderr:
            assert results[0].returncode == results[1].returncode, (line, results[0].stderr, results[1].stderr)
        assert _state(qubes, names[0]) == _state(qubes, names[1]), line
    for name in names:
        assert qubes.ours("qvm-remove", "--force", name).returncode == 0


def _state(both: Both, name: str) -> list[str]:
    texts = [both.ours(*shlex.split(line.replace("{}", name))).stdout for line in STATE]
    connection = Connection(Paths.from_environment({"CLOISON_ROOT": str(both.root)}))
    texts.append(connection.call(name, "admin.vm.device.block.Assigned").decode())
    lines = "\n".join(texts).replace(name, "NAME").splitlines()
    return [line for line in lines if line.split(" ", 1)[0] not in ITS_OWN]


# What is the system's own: their client goes there and back, then ours does; each step must print and leave the same.
THERE_AND_BACK = """
qvm-prefs net1 netvm none
qubes-prefs
qubes-prefs default_netvm net2
qubes-prefs default_netvm net1
qubes-prefs --get default_netvm
qubes-prefs default_netvm
qubes-prefs --hide-default
qubes-prefs default_netvm none
qubes-prefs --default default_netvm
qubes-prefs default_dispvm app1
qubes-prefs default_dispvm app2
qvm-ls --fields name,netvm,default_dispvm
qubes-prefs -D default_dispvm
qubes-prefs stats_interval many
qubes-prefs --set stats_interval 5
qubes-prefs --default stats_interval
qubes-prefs check_updates_vm off
qubes-prefs -D check_updates_vm
qubes-prefs clockvm net1
qvm-features net1
qubes-prefs clockvm none
qubes-prefs --default clockvm
qubes-prefs updatevm net2
qubes-prefs --default updatevm
qubes-prefs default_kernel nosuch
qubes-prefs default_pool nosuch
qubes-prefs maxmem 5
qubes-prefs nosuch
qubes-prefs nosuch value
qubes-prefs --default nosuch
qubes-prefs --help-properties
qvm-prefs --default net1 netvm
qvm-pool add -o dir_path={dir} second qcow2
qvm-pool add -o dir_path={dir} second qcow2
qvm-pool info second
qvm-pool set -o revisions_to_keep=2 second
qvm-pool set -o ephemeral_volatile=yes second
qvm-pool set -o nosuch=1 second
qvm-pool info second
qvm-create --label red --template tpl -P second other
qvm-volume list -p second
qvm-volume info other:private revisions_to_keep
qvm-volume info other:volatile ephemeral
qvm-volume config other:volatile ephemeral no
qvm-volume config other:private rw no
qvm-volume info other:private rw
qvm-pool remove second
qvm-device block assign other dom0:sda
qvm-device block assign --required other dom0:sda
qvm-device block list --assignments other
qvm-block unassign other
qvm-device block deny other
qvm-prefs other devices_denied u03****b******
qvm-prefs other devices_denied nosuch
qvm-prefs other keyboard_layout de+nodeadkeys+
qvm-prefs other keyboard_layout de
qvm-prefs other template_for_dispvms yes
qvm-prefs app1 default_dispvm other
qvm-prefs --default other template_for_dispvms
qvm-remove --force other
qvm-prefs --default app1 default_dispvm
qvm-prefs --default other template_for_dispvms
qvm-check --quiet other
qvm-remove --force other
qvm-pool remove second
qvm-pool remove second
qvm-pool info second
"""
SYSTEM_STATE = ("qubes-prefs", "qvm-ls --raw-data --fields name,class,netvm,default_dispvm,pool", "qvm-pool list")
# Differ by themselves: free space.
_OWN = ("usage", "size", "dir_path")


def _whole(both: Both) -> str:
    return "".join(both.ours(*shlex.split(line)).stdout for line in SYSTEM_STATE)


def _comparable(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.split(" ", 1)[0] not in _OWN]


def test_the_systems_own_settings(qubes: Both, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = _whole(qubes)
    told: list[list[tuple[str, int, bool, list[str], str]]] = []
    for run in (qubes.theirs, qubes.ours):
        folder = str(tmp_path_factory.mktemp("pool"))
        told.append([])
        for line in THERE_AND_BACK.strip().splitlines():
            done = run(*shlex.split(line.replace("{dir}", folder)), text="")
            told[-1].append((line, done.returncode, "Traceback" in done.stderr, _comparable(done.stdout), _whole(qubes)))
        assert _whole(qubes) == before
    for (line, status, broken, printed, state), ours in zip(*told, strict=True):
        assert (printed, state) == ours[3:], line
        assert not ours[2], line
        assert status == ours[1] or (broken and ours[1]), line
