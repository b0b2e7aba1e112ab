"""Rules + facts + request -> decision, with the rule that decided (reference/qrexec.md 13).

Total: whatever a caller asks for, the answer is an Allow, an Ask or a Deny. Names are compared, never executed; what was
decided is what is to be run, so nothing here is looked up again later by another spelling.
"""
from __future__ import annotations

from typing import NamedTuple

from cloison.policy.facts import HOST, HOST_SPELLINGS, Facts, Qube
from cloison.policy.rules import Action, Rule, Rules, Verb
from cloison.policy.tokens import ADMINVM, DEFAULT, DISPVM, DISPVM_OF, Column, Endpoint, TokenError, Unresolvable, parse_token

DEFAULT_USER = "DEFAULT"


class Request(NamedTuple):
    """A call as it came. `argument` begins with `+`; `requested_source` is the RemoteVM that a relay speaks for."""

    service: str
    argument: str
    source: str
    untrusted_target: str
    untrusted_requested_source: str = ""


class Call(NamedTuple):
    """A request whose ends have been checked against the facts."""

    service: str
    argument: str
    source: Endpoint
    target: Endpoint
    relayed: bool


class Allow(NamedTuple):
    """`target` is a name, a `uuid:` alias, `dom0` or `@dispvm:NAME`. `user` None: the called qube's default user."""

    call: Call
    rule: Rule
    target: str
    user: str | None
    autostart: bool
    notify: bool


class Ask(NamedTuple):
    """A person must choose one of `targets`. `default` is one of them, to be preselected, or None."""

    call: Call
    rule: Rule
    targets: frozenset[str]
    default: str | None
    user: str | None
    autostart: bool
    notify: bool


class Deny(NamedTuple):
    """`why` is a word for programs, `text` a sentence for the host's log: never for a qube. `rule` None: none decided."""

    why: str
    text: str
    notify: bool = True
    rule: Rule | None = None


Decision = Allow | Ask | Deny


class Response(NamedTuple):
    """What the daemon of the calling qube is told to do (reference/qrexec.md 13.6)."""

    user: str
    target: str
    target_uuid: str | None
    autostart: bool
    requested_target: str
    service: str | None
    policy_source: str | None

    def __str__(self) -> str:
        lines = [f"user={self.user}", "result=allow", f"target={self.target}"]
        if self.target_uuid is not None:
            lines.append(f"target_uuid={self.target_uuid}")
        lines += [f"autostart={self.autostart}", f"requested_target={self.requested_target}"]
        if self.service is not None:
            lines.append(f"service={self.service}")
        if self.policy_source is not None:
            lines.append(f"policy_source={self.policy_source}")
        return "\n".join(lines)


class _Denied(Exception):
    """Carries a Deny up."""

    def __init__(self, deny: Deny) -> None:
        super().__init__(deny.text)
        self.deny = deny


def evaluate(rules: Rules, facts: Facts, request: Request) -> Decision:
    """What policy says of the request. Raises nothing."""
    call = resolve(facts, request)
    if isinstance(call, Deny):
        return call
    for rule in rules.for_service(call.service):
        try:
            found = matches(rule, call)
        except Unresolvable as error:
            return Deny(error.why, f"{error} ({rule.place})", True, rule)
        if found:
            return decide(rules, facts, call, rule)
    return Deny("no-match", "no rule is for this call")


def resolve(facts: Facts, request: Request) -> Call | Deny:
    """The ends of the call, checked against the facts."""
    if not request.service or not request.argument.startswith("+"):
        return Deny("request-service", "the call names no service")
    if not (request.service.isprintable() and request.argument.isprintable()):      # both become part of a line of the answer
        return Deny("request-service", "the call's service has characters that no service has")
    try:
        return _resolve(facts, request)
    except _Denied as denied:
        return denied.deny


def matches(rule: Rule, call: Call) -> bool:
    """Of a rule for the call's service. Raises Unresolvable."""
    return (
        rule.argument in ("*", call.argument)
        and rule.source.matches(call.source)
        and rule.target.matches(call.target)
    )


def decide(rules: Rules, facts: Facts, call: Call, rule: Rule) -> Decision:
    """What a rule makes of a call that it matches."""
    try:
        if rule.action.verb is Verb.DENY:
            return Deny("rule", f"{rule.place} denies it", rule.action.notify, rule)
        if rule.action.verb is Verb.ALLOW:
            return _allow(facts, call, rule)
        return _ask(rules, facts, call, rule)
    except Unresolvable as error:
        return Deny(error.why, f"{error} ({rule.place})", True, rule)
    except _Denied as denied:
        return denied.deny._replace(rule=rule)


def _resolve(facts: Facts, request: Request) -> Call:
    try:
        wanted = parse_token(request.untrusted_target or DEFAULT, Column.REQUEST).text
    except TokenError:
        raise _Denied(Deny("request-target-token", "what was asked for is not a possible target")) from None
    wanted = _existing(facts, wanted)
    source = Endpoint(request.source, facts)
    relayed = bool(request.untrusted_requested_source)
    if relayed:
        source = Endpoint(_remote(facts, source, request.untrusted_requested_source), facts)
    return Call(request.service, request.argument, source, Endpoint(wanted, facts, source), relayed)


def _existing(facts: Facts, target: str) -> str:
    """The target if it exists, else `@default`. Raises _Denied for a disposable of what is not a disposable template."""
    if target.startswith(DISPVM_OF):
        if facts.template(target[len(DISPVM_OF):]) is None:
            raise _Denied(Deny("not-dispvm-template", "a disposable was asked for of what is no disposable template"))
        return target
    if target in facts.qubes or target in (DISPVM, DEFAULT) or target in HOST_SPELLINGS:
        return target
    return DEFAULT


def _remote(facts: Facts, relay: Endpoint, untrusted_name: str) -> str:
    remote = facts.qubes.get(untrusted_name)
    if remote is None:
        raise _Denied(Deny("requested-source-unknown", "the call claims to come from a qube that does not exist"))
    if remote.klass != "RemoteVM":
        raise _Denied(Deny("requested-source-not-remote", f"{remote.name} is not remote: no call can claim to be its"))
    if remote.relayvm is None or remote.relayvm not in relay.spellings:
        raise _Denied(Deny("requested-source-wrong-relay", f"{relay.text} is not the relay of {remote.name}"))
    return untrusted_name


def _allow(facts: Facts, call: Call, rule: Rule) -> Decision:
    action = rule.action
    target = call.target.text if action.target is None else _existing(facts, action.target)
    if target == DEFAULT:
        return Deny("allow-without-target", f"{rule.place} allows it, but there is no target", True, rule)
    if target == DISPVM:
        template = call.source.default_dispvm()
        if template is None:
            return Deny("no-default-dispvm", f"{call.source.text} has no default disposable template", True, rule)
        target = f"{DISPVM_OF}{template}"
    elif target == ADMINVM:
        target = HOST
    if not action.autostart and not _runs(facts, target):
        return Deny("autostart", f"{target} does not run, and {rule.place} forbids to start it", action.notify, rule)
    return Allow(call, rule, target, action.user, action.autostart, action.notify)


def _runs(facts: Facts, target: str) -> bool:
    """Disposables never do: each call gets one of its own."""
    if target in HOST_SPELLINGS:
        return True
    qube = facts.qubes.get(target)
    return qube is not None and qube.running


def _ask(rules: Rules, facts: Facts, call: Call, rule: Rule) -> Decision:
    action = rule.action
    targets = _choices(rules, facts, call) if action.target is None else frozenset({_host_by_name(action.target)})
    if not action.autostart:
        targets = frozenset(target for target in targets if _runs(facts, target))
    if not targets:
        return Deny("ask-no-targets", f"{rule.place} asks, but there is no target to choose", True, rule)
    default = _preselected(call, action)
    return Ask(call, rule, targets, default if default in targets else None, action.user, action.autostart, action.notify)


def _preselected(call: Call, action: Action) -> str | None:
    if action.default_target != DISPVM:
        return None if action.default_target is None else _host_by_name(action.default_target)
    template = call.source.default_dispvm()
    return None if template is None else f"{DISPVM_OF}{template}"


def _host_by_name(target: str) -> str:
    return HOST if target in HOST_SPELLINGS else target


def _choices(rules: Rules, facts: Facts, call: Call) -> frozenset[str]:
    """Every target that some rule lets this source reach with this service: a later rule yields to an earlier one."""
    if call.source.qube is None:
        raise Unresolvable("unknown-source", f"nobody can be asked for {call.source.text}, which does not exist")
    targets: set[str] = set()
    for rule in reversed(rules.for_service(call.service)):
        if rule.argument not in ("*", call.argument) or not rule.source.matches(call.source):
            continue
        action = rule.action
        token = rule.target if action.target is None else parse_token(action.target, Column.REDIRECT)
        if action.verb is Verb.DENY:
            targets -= token.expand(facts)
        else:
            targets |= token.expand(facts)
    if DISPVM in targets:
        targets.remove(DISPVM)
        template = call.source.default_dispvm()
        if template is not None:
            if template not in facts.qubes:
                raise Unresolvable("unknown-template", f"{template}, of which {call.source.text} has disposables, does not exist")
            targets.add(f"{DISPVM_OF}{template}")
    if ADMINVM in targets:
        targets.remove(ADMINVM)
        targets.add(HOST)
    return frozenset(targets.difference(call.source.spellings, facts.hidden))


def choose(ask: Ask, target: str) -> Allow | Deny:
    """The person's answer. What was not offered is denied."""
    if target not in ask.targets:
        return Deny("not-offered", "a target was chosen that was not offered", ask.notify, ask.rule)
    return Allow(ask.call, ask.rule, target, ask.user, ask.autostart, ask.notify)


def respond(facts: Facts, allow: Allow) -> Response | Deny:
    """How to carry the call out, or why that is impossible after all."""
    call, target = allow.call, allow.target
    if target == call.source.text:
        return Deny("loopback", f"{target} can't call itself", True, allow.rule)
    requested, user = call.target.text, allow.user or DEFAULT_USER
    if target in HOST_SPELLINGS:
        return Response(user, HOST, None, allow.autostart, requested, None, None)
    policy_source = call.source.text if call.relayed else None
    if target.startswith(DISPVM_OF):
        template = facts.qubes.get(target[len(DISPVM_OF):])
        if template is None:
            return Deny("unknown-target", f"{target} does not exist", True, allow.rule)
        alias = f"{DISPVM_OF}{template.alias}"
        return Response(user, target, alias, allow.autostart, requested, None, policy_source)
    qube = facts.qubes.get(target)
    if qube is None:
        return Deny("unknown-target", f"{target} does not exist", True, allow.rule)
    if qube.klass == "RemoteVM":
        return _relayed(facts, allow, qube, policy_source)
    return Response(user, target, qube.alias, allow.autostart, requested, None, policy_source)


def _relayed(facts: Facts, allow: Allow, remote: Qube, policy_source: str | None) -> Response | Deny:
    """A call to another machine's qube is one to its relay; the rule's user is the far end's business."""
    call = allow.call
    if remote.relayvm is None:
        return Deny("relayvm-unset", f"{remote.name} has no relay", True, allow.rule)
    if remote.transport_rpc is None:
        return Deny("transport-unset", f"{remote.name} has no transport", True, allow.rule)
    relay = facts.qubes.get(remote.relayvm)
    if relay is None:
        return Deny("relayvm-unset", f"the relay of {remote.name} does not exist", True, allow.rule)
    service = f"{remote.transport_rpc}+{call.target.text}+{call.service}{call.argument}"
    return Response(DEFAULT_USER, relay.name, relay.alias, allow.autostart, call.target.text, service, policy_source)
