"""qvm-firewall: what a qube may reach in the network. Rules are checked by qubesd (reference/admin-api.md 9)."""
from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from cloison.cli import tool
from cloison.client.connection import Connection
from cloison.client.domains import lines
from cloison.errors import CloisonError

PROG = "qvm-firewall"
ACCEPT_ALL = "action=accept"
_POSITIONS = ("action", "dsthost", "proto", "dstports", "icmptype")
_KEYS = ("action", "dsthost", "dst4", "dst6", "proto", "dstports", "icmptype", "specialtarget", "expire", "comment")
_HEADER = ("NO", "ACTION", "HOST", "PROTOCOL", "PORT(S)", "SPECIAL TARGET", "ICMP TYPE", "EXPIRE", "COMMENT")
_DESTINATIONS = ("dst4", "dst6", "dsthost")
_RULE = """a rule is written
  ACTION [HOST [PROTO [PORTS|ICMPTYPE]]]
or with names, in any order, and both ways may be mixed:
  action=       accept or drop
  dsthost=      address, network or host name (dst4= and dst6= mean the same)
  proto=        tcp, udp or icmp
  dstports=     a port, or a range such as 1200-1400
  icmptype=     a number, such as 8 for echo requests
  specialtarget=dns   the qube's name servers
  expire=       seconds since 1970 or, with +, from now
  comment=      text

"""
Rule = dict[str, str]


def parser() -> tool.Parser:
    description = "Show or change the firewall rules of a qube. What no rule matches is dropped."
    result = tool.Parser(prog=PROG, qubes="1", description=description, examples=[
        ("qvm-firewall work", "its rules, in order; the first that matches counts"),
        ("qvm-firewall work add accept example.org tcp 443", "add a rule at the end"),
        ("qvm-firewall work add --before 0 drop 10.0.0.0/8", "add a rule before all others"),
        ("qvm-firewall work del --rule-no 0", "take a rule away"),
        ("qvm-firewall work reset", "allow everything again"),
    ])
    result.epilog = _RULE + str(result.epilog)
    _listing_options(result, default=False)
    verbs = result.add_subparsers(dest="verb", metavar="COMMAND")
    adding = verbs.add_parser("add", help="add a rule")
    adding.add_argument("--before", metavar="NUMBER", type=int, help="before the rule with this number instead of at the end")
    adding.add_argument("rule", metavar="RULE", nargs="+")
    adding.set_defaults(act=_add)
    deleting = verbs.add_parser("del", help="take a rule away")
    deleting.add_argument("--rule-no", metavar="NUMBER", type=int, help="the rule with this number")
    deleting.add_argument("rule", metavar="RULE", nargs="*")
    deleting.set_defaults(act=_delete)
    verbs.add_parser("reset", help="back to one rule that accepts everything").set_defaults(act=_reset)
    listing = verbs.add_parser("list", help="list the rules")
    _listing_options(listing, default=argparse.SUPPRESS)
    listing.set_defaults(act=_list)
    result.set_defaults(act=_list)
    return result


def _listing_options(verb: tool.Parser, default: object) -> None:
    verb.add_argument("--reload", "-r", action="store_true", default=default, help="have the rules loaded again")
    verb.add_argument("--raw", action="store_true", default=default, help="print rules as the Admin API spells them")


def run(args: argparse.Namespace, connection: Connection) -> int:
    dest = tool.qube_name(args.name)
    args.act(args, connection, dest)
    return 0


# -- rules ---------------------------------------------------------------------------------------------------------------


def rule_of(words: Sequence[str]) -> Rule:
    """A rule as it was typed. Ends the tool for what can't be one; the rest is qubesd's to judge."""
    positions, rule = list(_POSITIONS), Rule()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if not positions:
                tool.quit_usage(PROG, f"too many words in the rule: {word!r}")
            key, value = positions[0], word
        _check_word(key, value, word)
        key = "dsthost" if key in _DESTINATIONS else key
        if key in rule:
            tool.quit_usage(PROG, f"{key} is there twice")
        rule[key] = value
        positions = [each for each in positions if each != key]
        if key == "proto":
            positions = [each for each in positions if each != ("dstports" if value == "icmp" else "icmptype")]
    if "action" not in rule:
        tool.quit_usage(PROG, "the rule has no action: accept or drop")
    return _canonical(rule)


def _check_word(key: str, value: str, word: str) -> None:
    """No word may read as two, nor a rule as two rules."""
    blanks = "\n" if key == "comment" else " \t\n\r\v\f"
    if key not in _KEYS or "=" in value or any(blank in value for blank in blanks):
        tool.quit_usage(PROG, f"invalid rule element: {word!r}")


def _canonical(rule: Rule) -> Rule:
    """As qubesd spells it, so that a typed rule can be found among its own."""
    host, ports, expire = rule.pop("dsthost", None), rule.get("dstports"), rule.get("expire", "")
    if host is not None:
        rule.update(_destination(host))
    if ports is not None and "-" not in ports:
        rule["dstports"] = f"{ports}-{ports}"
    if expire.startswith("+") and expire[1:].isdecimal():
        rule["expire"] = str(int(time.time()) + int(expire[1:]))
    return rule


def _destination(host: str) -> Rule:
    """Everything is no restriction, so it is left out. The address stays as typed, bits beyond the prefix included."""
    import ipaddress

    try:
        address = ipaddress.ip_interface(host)
    except ValueError:
        return {"dsthost": host}
    return {f"dst{address.version}": str(address)} if address.network.prefixlen else {}


def parse_line(line: str) -> Rule:
    """A rule as qubesd sends it."""
    head, found, comment = line.partition("comment=")
    rule = dict(word.partition("=")[::2] for word in head.split())
    return {**rule, "comment": comment} if found else rule


def text_of(rule: Rule) -> str:
    """A line of the Admin API; the comment is last, since it may hold spaces."""
    order = ("action", "proto", *_DESTINATIONS, "dstports", "icmptype", "specialtarget", "expire", "comment")
    return " ".join(f"{key}={rule[key]}" for key in order if key in rule)


def _get(connection: Connection, dest: str) -> list[Rule]:
    return [parse_line(line) for line in lines(connection.call(dest, "admin.vm.firewall.Get"))]


def _set(connection: Connection, dest: str, rules: Sequence[Rule]) -> None:
    connection.call(dest, "admin.vm.firewall.Set", payload="".join(f"{text_of(rule)}\n" for rule in rules).encode())


# -- commands ------------------------------------------------------------------------------------------------------------


def _add(args: argparse.Namespace, connection: Connection, dest: str) -> None:
    new, rules = rule_of(args.rule), _get(connection, dest)
    rules.insert(len(rules) if args.before is None else args.before, new)
    _set(connection, dest, rules)


def _delete(args: argparse.Namespace, connection: Connection, dest: str) -> None:
    if (args.rule_no is None) != bool(args.rule):
        tool.quit_usage(PROG, "name the rule to take away: by --rule-no, or by what it says")
    number, wanted, rules = args.rule_no, rule_of(args.rule) if args.rule else None, _get(connection, dest)
    if number is None:
        number = next((place for place, rule in enumerate(rules) if rule == wanted), None)
        if number is None:
            raise CloisonError(f"{dest} has no such rule")
    elif not 0 <= number < len(rules):
        raise CloisonError(f"{dest} has no rule number {number}")
    del rules[number]
    _set(connection, dest, rules)


def _reset(_: argparse.Namespace, connection: Connection, dest: str) -> None:
    _set(connection, dest, [parse_line(ACCEPT_ALL)])


def _list(args: argparse.Namespace, connection: Connection, dest: str) -> None:
    rules = _get(connection, dest)
    if not args.raw:
        tool.say(tool.table([_HEADER, *(_row(number, rule) for number, rule in enumerate(rules))]))
    elif rules:
        tool.say("\n".join(text_of(rule) for rule in rules))
    if args.reload:
        connection.call(dest, "admin.vm.firewall.Reload")


def _row(number: int, rule: Rule) -> tuple[str, ...]:
    host = next((rule[key] for key in _DESTINATIONS if key in rule), "-")
    first, _, last = rule.get("dstports", "-").partition("-")
    ports = "-" if not first else first if first == last else f"{first}-{last}"
    expire = f"{int(rule['expire']) - time.time():+.0f}s" if rule.get("expire", "").isdecimal() else "-"
    rest = (rule.get(key, "-") for key in ("specialtarget", "icmptype"))
    return str(number), rule.get("action", "-"), host, rule.get("proto", "-"), ports, *rest, expire, rule.get("comment", "-")


def main(argv: Sequence[str] | None = None) -> int:
    return tool.main(parser(), run, argv)
