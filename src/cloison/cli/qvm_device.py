"""qvm-device, and under their own names qvm-block, qvm-usb and qvm-pci: devices of one qube in the hands of another."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from cloison.begin import FAILED
from cloison.cli import tool
from cloison.cli.qvm_create import pair_of
from cloison.client import devices
from cloison.client.connection import Connection, NoDaemon
from cloison.client.devices import Line
from cloison.client.domains import DOM0, get_property, lines, list_qubes
from cloison.devicetext import ANY, UNKNOWN_IDENTITY, Device, interface_matches, interfaces
from cloison.errors import (
    BadRequest,
    CloisonError,
    DeviceAlreadyAssigned,
    DeviceNotAssigned,
    NoSuchProperty,
    NotPermitted,
    QubeNotFound,
)
from cloison.values import InvalidValue, QubeName

PROG = "qvm-device"
_CLASSES = ("--list-device-classes", "--list-classes")
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")
_REQUIRABLE = ("pci", "block")
_HINT = "{done}. To {verb} you can now restart domain or run: \n{commands}"


class NoBackend(tool.NoSuchQube):
    """The device's qube is none."""

    exit_status = FAILED


def parser(prog: str = PROG) -> tool.Parser:
    """`prog`: qvm-device, which takes the class as its first word, or qvm-CLASS."""
    devclass = None if prog == PROG else prog.removeprefix("qvm-")
    name = prog if devclass else f"{prog} block"
    result = tool.Parser(prog=prog, description=f"Show or change {devclass or 'which'} devices qubes use.", examples=[
        (f"{name} list", "what there is, and who uses it"),
        (f"{name} attach work sys-usb:sda", "for now"),
        (f"{name} assign work sys-usb:sda", "each time it is plugged in, or work starts"),
        (f"{name} unassign work sys-usb:sda", "no more"),
        (f"{name} detach work", "all of work"),
    ])
    if devclass is None:
        result.add_argument("devclass", metavar="DEVICE_CLASS", help="block, usb, pci, ...")
    result.add_argument(*_CLASSES, action="store_true", help="list the classes of devices")
    verbs = result.add_subparsers(dest="verb", metavar="COMMAND")
    _add_list(verbs)
    attach = _add(verbs, "attach", ("at", "a"), "let a qube use a device now", _attach, device=None)
    attach.add_argument("--persistent", "-p", dest="required", action="store_true", help="the same as assign --required, too")
    attach.add_argument("--force", "-f", action="store_true", help="also to dom0")
    _add(verbs, "detach", ("d", "dt"), "take a device, or all, back", _detach, device="?")
    assign = _add(verbs, "assign", ("s",), "let a qube always have a device, or change how", _assign, device=None)
    mode = assign.add_mutually_exclusive_group()
    mode.add_argument("--ask", "--ask-to-attach", action="store_true", help="ask each time")
    mode.add_argument("--required", "-r", action="store_true", help="the qube can't start without it")
    unassign = _add(verbs, "unassign", ("u",), "no longer", _unassign, device="?")
    for verb in (attach, assign):
        verb.add_argument("--option", "-o", metavar="NAME=VALUE", action="append", default=[], help="again for more")
        verb.add_argument("--ro", action="store_true", help="the same as -o read-only=yes")
    for verb in (assign, unassign):
        which = verb.add_mutually_exclusive_group()
        which.add_argument("--port", "--only-port", dest="only_port", action="store_true", help="any device at this port")
        which.add_argument("--device", "--only-device", dest="only_device", action="store_true", help="this device at any port")
    info = verbs.add_parser("info", aliases=("i",), help="tell about a device")
    info.add_argument("device", metavar="BACKEND:PORT", nargs="?")
    info.set_defaults(act=_info)
    result.set_defaults(act=_list, names=[], exclude=[], all_qubes=False, assignments=False, with_sbdf=False,
                        **({"devclass": devclass} if devclass else {}))
    return result


def _add_list(verbs: argparse._SubParsersAction[tool.Parser]) -> None:
    listing = verbs.add_parser("list", aliases=("ls", "l"), help="list devices", qubes="*")
    listing.add_argument("--assignments", "-s", action="store_true", help="also what is assigned, marked by '*'")
    listing.add_argument("--with-sbdf", "--resolve-paths", action="store_true", help="for pci: also the address on the bus")
    listing.set_defaults(act=_list)


def _add(
    verbs: argparse._SubParsersAction[tool.Parser], name: str, aliases: Sequence[str], text: str, act: object, *,
    device: str | None,
) -> tool.Parser:
    verb: tool.Parser = verbs.add_parser(name, aliases=aliases, help=text, qubes="1")
    verb.add_argument("device", metavar="BACKEND:PORT[:DEVICE_ID]", nargs=device)
    verb.set_defaults(act=act)
    return verb


class Access:
    """The devices of one class."""

    def __init__(self, connection: Connection, devclass: str) -> None:
        self.connection, self.devclass = connection, devclass
        self._available: dict[str, dict[str, Line]] = {}

    def method(self, verb: str) -> str:
        return f"admin.vm.device.{self.devclass}.{verb}"

    def available(self, backend: str) -> dict[str, Line]:
        """What a backend exposes now, by port."""
        if backend not in self._available:
            reply = self.connection.call(backend, self.method("Available"))
            self._available[backend] = devices.available(reply, self.devclass, backend)
        return self._available[backend]

    def used(self, verb: str, dest: str) -> list[Line]:
        """`verb`: Attached or Assigned."""
        return devices.used(self.connection.call(dest, self.method(verb)), self.devclass)

    def all_used(self, verb: str, qubes: Sequence[str]) -> dict[str, list[Line]]:
        """Of many qubes. One that goes away meanwhile has none."""
        return {qube: devices.used(reply, self.devclass) for qube, reply in zip(qubes, self._ask(verb, qubes), strict=True)}

    def load(self, backends: Sequence[str]) -> None:
        """Have what these expose at hand."""
        for backend, reply in zip(backends, self._ask("Available", backends), strict=True):
            self._available[backend] = devices.available(reply, self.devclass, backend)

    def _ask(self, verb: str, qubes: Sequence[str]) -> Iterator[bytes]:
        """The same of many qubes; all answers are there before one is judged."""
        replies = list(self.connection.gather((qube, self.method(verb), "") for qube in qubes))
        for reply in replies:
            if isinstance(reply, NotPermitted | BadRequest | NoDaemon):
                raise CloisonError(f"failed to list {self.devclass[:40]!r} devices: there is no such class of devices, "
                                   "or you have no access to it") from reply
            if isinstance(reply, CloisonError) and not isinstance(reply, QubeNotFound):
                raise reply
            yield reply if isinstance(reply, bytes) else b""

    def chosen(self, text: str) -> tuple[Device, Line | None]:
        """The device that was typed, and what is known of it if it is there. Raises CloisonError, InvalidValue."""
        try:
            backend, port, identity = devices.parse_device(text)
        except InvalidValue as error:
            tool.quit_usage(PROG, str(error))
        if backend != DOM0:
            QubeName(backend)
        try:
            line = self.available(backend).get(port)
        except QubeNotFound:
            raise NoBackend(f"there is no qube {backend!r}") from None
        if line is not None and identity in (None, line.device.identity):
            return line.device, line
        return Device(self.devclass, backend, port, identity or UNKNOWN_IDENTITY), line if identity == ANY else None

    def send(self, verb: str, dest: str, device: Device, payload: bytes = b"") -> None:
        self.connection.call(dest, self.method(verb), device.argument, payload)

    def not_exposed(self, device: Device) -> CloisonError:
        return CloisonError(f"qube {device.backend} does not expose {self.devclass} device {device.port!r}")


def run(args: argparse.Namespace, connection: Connection) -> int:
    if args.list_device_classes:
        tool.say("\n".join(sorted(lines(connection.call(DOM0, "admin.deviceclass.List")))))
        return 0
    if not args.devclass.replace("-", "").isalnum() or not args.devclass.isascii():
        raise CloisonError(f"{args.devclass[:40]!r} is not a class of devices")
    args.act(args, Access(connection, args.devclass))
    return 0


# -- list ----------------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, access: Access) -> None:
    if args.exclude and not args.all_qubes:
        tool.quit_usage(PROG, "--exclude can only be used with --all")
    everyone = list(list_qubes(access.connection))
    wanted = [qube.name for qube in tool.chosen(args, access.connection)] if args.names or args.all_qubes else everyone
    attached = access.all_used("Attached", everyone)
    access.load(wanted)
    found = {line.device: line for qube in wanted for line in access.available(qube).values()}
    for qube in wanted:
        for line in attached[qube]:
            found.setdefault(line.device, access.available(line.device.backend).get(line.device.port, line))
    rows = [
        (device.place, line.extra.get("sbdf", ""), devices.description(line),
         _users(device, attached, "", lambda _: "attached"))
        for device, line in found.items()
    ]
    if args.assignments:
        rows += _assigned(access.all_used("Assigned", everyone))
    columns = range(4) if args.with_sbdf and access.devclass == "pci" else (0, 2, 3)
    header = [("BACKEND:DEVID", "SBDF", "DESCRIPTION", "USED BY")] if tool.is_terminal(sys.stdout) else []
    table = tool.table([[row[column] for column in columns] for row in (*header, *sorted(rows))])
    if table:
        tool.say(table)


def _assigned(assigned: dict[str, list[Line]]) -> list[tuple[str, str, str, str]]:
    patterns = dict.fromkeys(line.device for rules in assigned.values() for line in rules)
    return [
        (device.place, "", "any device" if device.identity == ANY else device.identity,
         _users(device, assigned, "*", lambda line: line.mode))
        for device in patterns
    ]


def _users(device: Device, used: dict[str, list[Line]], mark: str, mode: Callable[[Line], str]) -> str:
    """`QUBE (MODE: OPTIONS)`, comma separated."""
    words = []
    for qube, rules in used.items():
        for line in rules:
            if qube != device.backend and line.device.matches(device):
                options = ", ".join(f"{key}={value}" for key, value in line.extra.items())
                words.append(f"{mark}{qube} ({mode(line)}{': ' + options if options else ''})")
    return ", ".join(words)


# -- attach, detach --------------------------------------------------------------------------------------------------------


def _options(args: argparse.Namespace) -> dict[str, str]:
    """Several spellings of read-only were in use."""
    options = dict(pair_of(text, PROG) for text in args.option)
    if args.ro:
        options["read-only"] = "yes"
    old = options.pop("ro", None)
    if old is not None:
        if old.lower() not in (*_YES, *_NO):
            tool.quit_usage(PROG, f"option ro is yes or no, not {old!r}")
        options["read-only"] = "yes" if old.lower() in _YES else "no"
    return options


def _attach(args: argparse.Namespace, access: Access) -> None:
    dest, (device, line) = _dest(args, access), access.chosen(args.device)
    if line is None:
        raise access.not_exposed(device)
    options = _options(args) | ({"force": "yes"} if args.force else {})
    if access.devclass == "pci" and not args.required:
        raise CloisonError("pci devices can't be attached to a running qube; use assign --required")
    mode = "required" if args.required else "manual"
    payload = devices.serialise(line.device, dest, mode, options)
    try:
        access.send("Attach", dest, line.device, payload)
    except CloisonError:
        if not args.required:
            raise
    if args.required:
        _check_mode(access.devclass, mode)
        access.send("Assign", dest, line.device, payload)


def _detach(args: argparse.Namespace, access: Access) -> None:
    dest = _dest(args, access)
    pattern, line = access.chosen(args.device) if args.device else (None, None)
    if pattern is not None and pattern.port != ANY:
        # What is no longer plugged in may still be attached: then any device at that port is meant.
        gone = pattern._replace(identity=ANY) if pattern.identity == UNKNOWN_IDENTITY else pattern
        return access.send("Detach", dest, gone if line is None else line.device)
    attached = [each.device for each in access.used("Attached", dest) if pattern is None or pattern.matches(each.device)]
    if pattern is not None and not attached:
        raise CloisonError(f"{pattern} is not attached")
    for device in attached:
        access.send("Detach", dest, device)
    return None


def _dest(args: argparse.Namespace, access: Access) -> str:
    """Raises NoName, or QubeNotFound: which device is meant is asked after that."""
    dest = DOM0 if args.name == DOM0 else tool.qube_name(args.name)
    list_qubes(access.connection, dest)
    return dest


# -- assign, unassign ------------------------------------------------------------------------------------------------------


def _check_mode(devclass: str, mode: str) -> None:
    if mode == "required" and devclass not in _REQUIRABLE:
        raise CloisonError(f"{devclass} devices can't be required to be there")
    if mode != "required" and devclass == "pci":
        raise CloisonError("pci devices can only be assigned as required: use --required")


def _narrowed(args: argparse.Namespace, device: Device) -> Device:
    if args.only_port:
        return device._replace(identity=ANY)
    return device._replace(port=ANY) if args.only_device else device


def _assign(args: argparse.Namespace, access: Access) -> None:
    dest, (device, line) = _dest(args, access), access.chosen(args.device)
    if line is None and not args.only_port and device.identity == UNKNOWN_IDENTITY:
        raise access.not_exposed(device)
    pattern, options = _narrowed(args, device), _options(args)
    mode = "required" if args.required else "ask-to-attach" if args.ask else "auto-attach"
    _check_mode(access.devclass, mode)
    try:
        access.send("Assign", dest, pattern, devices.serialise(pattern, dest, mode, options))
    except DeviceAlreadyAssigned:
        if options:
            raise
        access.send("Set.assignment", dest, pattern, mode.encode())
    if args.quiet or line is None:
        return
    if _denied(access.connection, dest, line):
        tool.say("Warning: The assigned device is on the denied list.\n"
                 "           Auto-attach will work, but make sure that the assignment is correct.")
    if access.devclass != "pci" and list_qubes(access.connection)[dest].running:
        words = "".join(f" -o {key}={value}" for key, value in options.items())
        _hint(access, dest, line.device, "Assigned", f"attach{words}", attached=False)


def _denied(connection: Connection, dest: str, line: Line) -> bool:
    try:
        text = get_property(connection, dest, "devices_denied").value
    except NoSuchProperty:
        return False
    return any(interface_matches(pattern, each) for pattern in interfaces(text) for each in devices.interfaces(line))


def _hint(access: Access, dest: str, device: Device, done: str, command: str, *, attached: bool) -> None:
    """What else to run, if the qube has the device (or not) just now."""
    if attached == any(device == each.device for each in access.used("Attached", dest)):
        text = f"\tqvm-{access.devclass} {command} {dest} {device.place}"
        tool.say(_HINT.format(done=done, verb=command.partition(" ")[0], commands=text))


def _unassign(args: argparse.Namespace, access: Access) -> None:
    dest = _dest(args, access)
    if args.device:
        patterns = [_narrowed(args, access.chosen(args.device)[0])]
    else:
        patterns = [line.device for line in access.used("Assigned", dest)]
    # Who typed no more than a port means what is assigned there: it may be unplugged, or another device be there now.
    only_place = args.device and not (args.only_port or args.only_device) and devices.parse_device(args.device)[2] is None
    for wanted in patterns:
        pattern = wanted
        try:
            access.send("Unassign", dest, wanted)
        except DeviceNotAssigned:
            if not only_place:
                raise
            pattern = _assigned_at(access, dest, wanted)
            access.send("Unassign", dest, pattern)
        line = None if args.quiet or pattern.backend == ANY else access.available(pattern.backend).get(pattern.port)
        if line is not None:
            _hint(access, dest, line.device, "Unassigned", "detach", attached=True)


def _assigned_at(access: Access, dest: str, device: Device) -> Device:
    """The one device that is assigned at that port. Raises CloisonError when that is none, or several."""
    there = [line.device for line in access.used("Assigned", dest) if line.device[1:3] == device[1:3]]
    if len(there) == 1:
        return there[0]
    if there:
        choices = ", ".join(str(each) for each in there)
        raise CloisonError(f"several devices of {device.place} are assigned to {dest}: name one of {choices}")
    raise CloisonError(f"{device.place} is not assigned to {dest}")


# -- info ----------------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace, access: Access) -> None:
    if args.device is None:
        return
    device, line = access.chosen(args.device)
    if line is None:
        raise access.not_exposed(device)
    extra = (f"{key.replace('_', ' ')}: {value}" for key, value in line.extra.items())
    tool.say("\n".join([devices.description(line), f"device ID: {line.device.identity}", *extra]))


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if prog == PROG and not set(_CLASSES).isdisjoint(words):
        words = [_CLASSES[0], "block"]          # asked for without a class
    return tool.main(parser(prog), run, words)
