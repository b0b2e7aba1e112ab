"""Judges calls: policy and facts, the person where a rule asks for one, the message afterwards, the line in the log.

Used by the policy daemon and by the program that stands in for it. A person takes time, and meanwhile qubes come and go and
rules change: what was chosen must still be on offer, and still be the same qube, when the answer comes.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from cloison.errors import CloisonError
from cloison.policy.evaluate import Allow, Ask, Decision, Deny, Request, Response, choose, evaluate, respond
from cloison.policy.rules import Rules
from cloison.policy.tokens import DEFAULT
from cloison.qrexec.call_log import CallLog
from cloison.qrexec.policyd.ask import Agents, NoAnswer
from cloison.qrexec.policyd.system_info import Snapshot
from cloison.wire import policy as wire
from cloison.wire.ask import Notice, Question

MAX_QUESTIONS = 8         # of one qube that may wait for a person
NOT_THE_VIEWER = Deny("window-owner", "the caller does not show both qubes' windows", notify=False)
MAX_NOTICES = 4           # of one qube that may be on their way; what it is refused beyond these is only logged


class Verdict(NamedTuple):
    """`outcome` is what is done. `asked`: a person was."""

    query: wire.Query
    outcome: Response | Deny
    decision: Decision
    asked: bool = False

    def answer(self) -> bytes:
        """As protocol text: refusals all look the same. Empty for who may not even ask."""
        if self.outcome is NOT_THE_VIEWER:
            return b""
        if isinstance(self.outcome, Deny):
            return wire.DENY
        return wire.ALLOW if self.query.just_evaluate else str(self.outcome).encode("utf-8")


class Judge:
    """`rules` and `snapshot` give the policy and the system as they are now."""

    def __init__(
        self, rules: Callable[[], Rules], snapshot: Callable[[], Awaitable[Snapshot]], agents: Agents, call_log: CallLog,
    ) -> None:
        self._rules, self._snapshot, self._agents, self._log = rules, snapshot, agents, call_log
        self._questions: dict[str, int] = {}
        self._notices: dict[str, int] = {}

    def at_once(self, query: wire.Query, now: Snapshot) -> Verdict | None:
        """The verdict, if it takes no person to make or to tell it. Raises nothing."""
        verdict = self._settled(query, now)
        if verdict is None or (self._notice(verdict) is not None and self._viewer(query, now) is not None):
            return None
        self._write(verdict)
        return verdict

    async def judge(self, query: wire.Query) -> Verdict:
        """Raises nothing but cancellation: whatever goes wrong is a refusal."""
        try:
            now = await self._snapshot()
            verdict = self._settled(query, now) or await self._asked(query, now)
        except CloisonError as error:
            deny = Deny("error", str(error), notify=False)
            verdict = Verdict(query, deny, deny)
        else:
            await self._tell(verdict, now)
        self._write(verdict)
        return verdict

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _settled(self, query: wire.Query, now: Snapshot) -> Verdict | None:
        """None if a person must be asked."""
        decision = self._decide(query, now)
        final = decision
        if isinstance(decision, Ask):
            if query.assume_yes:
                final = choose(decision, decision.call.target.text)
            elif query.just_evaluate:
                final = Deny("ask", "a person would have to be asked", notify=False, rule=decision.rule)
            else:
                return None
        return Verdict(query, _outcome(now, final), decision)

    def _decide(self, query: wire.Query, now: Snapshot) -> Decision:
        if query.window_owner and not _shows(now, query):
            return NOT_THE_VIEWER
        try:
            rules = self._rules()
        except CloisonError as error:
            return Deny("policy", f"the policy is invalid: {error}")
        return evaluate(rules, now.facts, request(query))

    async def _asked(self, query: wire.Query, now: Snapshot) -> Verdict:
        ask = self._decide(query, now)
        if not isinstance(ask, Ask):
            return Verdict(query, _outcome(now, ask), ask)
        target = await self._question(query, now, ask)
        if isinstance(target, Deny):
            return Verdict(query, target, ask, asked=True)
        later = await self._snapshot()
        again = self._decide(query, later)
        source = ask.call.source.text
        if not isinstance(again, Ask) or any(now.identity(name) != later.identity(name) for name in (source, target)):
            deny = Deny("changed", "the policy or the qubes changed while a person was asked", ask.notify, ask.rule)
            return Verdict(query, deny, ask, asked=True)
        return Verdict(query, _outcome(later, choose(again, target)), again, asked=True)

    async def _question(self, query: wire.Query, now: Snapshot, ask: Ask) -> str | Deny:
        """The chosen target."""
        viewer = self._viewer(query, now)
        if viewer is None:
            return Deny("no-guivm", f"nobody shows windows of {query.source}, so nobody can be asked", ask.notify, ask.rule)
        waiting = self._questions.get(query.source, 0)
        if waiting >= MAX_QUESTIONS:
            return Deny("too-many-questions", f"{query.source} has {waiting} questions open", notify=False, rule=ask.rule)
        question = Question(ask.call.source.text, ask.call.service, ask.call.argument, tuple(sorted(ask.targets)),
                            ask.default or "", now.icons)
        self._questions[query.source] = waiting + 1
        try:
            target = await self._agents.ask(viewer, question)
        except NoAnswer as error:
            return Deny("no-answer", str(error), ask.notify, ask.rule)
        finally:
            _less(self._questions, query.source)
        return target if target is not None else Deny("refused", "the person said no", ask.notify, ask.rule)

    # -- telling -------------------------------------------------------------------------------------------------------

    def _viewer(self, query: wire.Query, now: Snapshot) -> str | None:
        return now.guivms.get(query.source)

    def _notice(self, verdict: Verdict) -> Notice | None:
        """What the person is told, or None."""
        query, outcome, decision = verdict.query, verdict.outcome, verdict.decision
        if query.just_evaluate:
            return None
        asked = request(query)
        target = query.untrusted_target or DEFAULT
        if isinstance(outcome, Deny):
            return Notice("deny", asked.service, asked.argument, query.source, target) if outcome.notify else None
        if isinstance(decision, Deny) or not decision.notify:
            return None
        return Notice("allow", asked.service, asked.argument, query.source, outcome.target)

    async def _tell(self, verdict: Verdict, now: Snapshot) -> None:
        notice, viewer, source = self._notice(verdict), self._viewer(verdict.query, now), verdict.query.source
        if notice is None or viewer is None or self._notices.get(source, 0) >= MAX_NOTICES:
            return
        self._notices[source] = self._notices.get(source, 0) + 1
        try:
            await self._agents.notify(viewer, notice)
        finally:
            _less(self._notices, source)

    def _write(self, verdict: Verdict) -> None:
        query, outcome, decision = verdict.query, verdict.outcome, verdict.decision
        fields: dict[str, object] = {"source": query.source, "service": query.untrusted_service}
        if isinstance(outcome, Deny):
            rule, asked_for = outcome.rule, query.untrusted_target or DEFAULT
            fields |= {"requested_target": asked_for, "target": None, "verdict": "deny", "why": outcome.text}
        else:
            rule = decision.rule
            fields |= {"requested_target": outcome.requested_target, "target": outcome.target, "verdict": "allow"}
        if query.untrusted_requested_source:
            fields["claimed_source"] = query.untrusted_requested_source
        self._log.write(**fields, rule=None if rule is None else rule.place, asked=verdict.asked, tried=query.just_evaluate)


def request(query: wire.Query) -> Request:
    service, _, argument = query.untrusted_service.partition("+")
    return Request(service, f"+{argument}", query.source, query.untrusted_target, query.untrusted_requested_source)


def _outcome(now: Snapshot, decision: Decision) -> Response | Deny:
    return respond(now.facts, decision) if isinstance(decision, Allow) else _denied(decision)


def _denied(decision: Ask | Deny) -> Deny:
    return decision if isinstance(decision, Deny) else Deny("ask", "nobody was asked", decision.notify, decision.rule)


def _shows(now: Snapshot, query: wire.Query) -> bool:
    tag = f"guivm-{query.window_owner}"
    qubes = [now.facts.qubes.get(name) for name in (query.source, query.untrusted_target)]
    return all(qube is not None and tag in qube.tags for qube in qubes)


def _less(counts: dict[str, int], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
