"""The judge alone, on rules, facts and a person in memory: what is decided, who is asked, who is told, what the log says."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.patience import PATIENCE
from tests.policy.support import entry, rules, system_info

from cloison.errors import CloisonError
from cloison.policy.facts import facts_from_system_info
from cloison.policy.rules import Rules
from cloison.qrexec.policyd.ask import NoAnswer
from cloison.qrexec.policyd.judge import MAX_NOTICES, MAX_QUESTIONS, NOT_THE_VIEWER, Judge, Verdict
from cloison.qrexec.policyd.system_info import Snapshot
from cloison.wire import policy as wire
from cloison.wire.ask import Notice, Question
from cloison.wire.policy import Query

POLICY = """
yes * work vault allow
loud * work vault allow notify=yes
no * work vault deny
quiet * work vault deny notify=no
ask * work @anyvm ask default_target=vault
asks-quietly * work @anyvm ask notify=no
asks-loudly * work @anyvm ask notify=yes
"""


class Person:
    """Answers all questions with `answer`, after `wait`; keeps what it was asked and told."""

    def __init__(self, answer: str | Exception | None = None) -> None:
        self.answer = answer
        self.wait: Callable[[], Awaitable[object]] | None = None
        self.questions: list[tuple[str, Question]] = []
        self.notices: list[tuple[str, Notice]] = []

    async def ask(self, viewer: str, question: Question) -> str | None:
        self.questions.append((viewer, question))
        if self.wait is not None:
            await self.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def notify(self, viewer: str, notice: Notice) -> None:
        self.notices.append((viewer, notice))
        if self.wait is not None:
            await self.wait()


class Court:
    """A judge and all that it has to do with; `rules` and `system` may be changed, or be an error."""

    def __init__(self, answer: str | Exception | None = None) -> None:
        self.rules: Rules | CloisonError = rules(POLICY)
        self.system: dict[str, Any] | CloisonError = system_info()
        self.guivms = {"work": "dom0", "vault": "gui"}
        self.person = Person(answer)
        self.lines: list[dict[str, object]] = []
        self.judge = Judge(self._rules, self._snapshot, self.person, self)       # type: ignore[arg-type]  # two fakes

    def _rules(self) -> Rules:
        if isinstance(self.rules, CloisonError):
            raise self.rules
        return self.rules

    async def _snapshot(self) -> Snapshot:
        return self.now()

    def now(self) -> Snapshot:
        if isinstance(self.system, CloisonError):
            raise self.system
        return Snapshot(facts_from_system_info(self.system), dict(self.guivms), {"work": "appvm-red"})

    def write(self, **fields: object) -> None:
        self.lines.append(fields)

    def ask(self, service: str, target: str = "vault", source: str = "work", **more: Any) -> Verdict:
        async def whole() -> Verdict:
            async with asyncio.timeout(PATIENCE):
                return await self.judge.judge(Query(source, target, service, **more))

        return asyncio.run(whole())


ALLOWED = (b"user=DEFAULT\nresult=allow\ntarget=vault\ntarget_uuid=uuid:00000000-0000-0000-0000-000000000002\nautostart=True\n"
           b"requested_target=vault")


@pytest.mark.parametrize(("service", "answer", "notice"), [
    ("yes", ALLOWED, None), ("loud", ALLOWED, "allow"), ("no", wire.DENY, "deny"), ("quiet", wire.DENY, None),
    ("unheard-of", wire.DENY, "deny"),
])
@pytest.mark.parametrize("evaluate", [False, True])
def test_what_takes_no_person_is_told_as_the_rule_says_and_logged_once(
    service: str, answer: bytes, notice: str | None, evaluate: bool,
) -> None:
    court = Court()
    query = Query("work", "vault", f"{service}+a", just_evaluate=evaluate)
    at_once = court.judge.at_once(query, court.now())
    assert (at_once is None) == (notice is not None and not evaluate)      # to tell somebody takes time
    assert len(court.lines) == (at_once is not None)
    court.lines.clear()
    verdict = court.ask(f"{service}+a", just_evaluate=evaluate)
    assert at_once is None or at_once.outcome == verdict.outcome
    assert verdict.answer() == (wire.ALLOW if evaluate and answer == ALLOWED else answer)
    told = [] if notice is None or evaluate else [("dom0", Notice(notice, service, "+a", "work", "vault"))]
    assert court.person.notices == told and court.person.questions == []
    (line,) = court.lines
    assert (line["source"], line["service"], line["requested_target"]) == ("work", f"{service}+a", "vault")
    assert line["verdict"] == ("allow" if answer == ALLOWED else "deny") and (line["target"] == "vault") == (answer == ALLOWED)
    assert line["tried"] is evaluate and line["asked"] is False and "claimed_source" not in line
    assert (line["rule"] is None) == (service == "unheard-of")


def test_a_notice_for_which_there_is_no_viewer_takes_no_time() -> None:
    court = Court()
    court.guivms.clear()
    verdict = court.judge.at_once(Query("work", "vault", "no"), court.now())
    assert verdict is not None and verdict.answer() == wire.DENY
    assert court.ask("no").answer() == wire.DENY and court.person.notices == []


def test_no_target_is_told_and_logged_as_the_default_one() -> None:
    court = Court()
    assert court.ask("no", "").answer() == wire.DENY
    assert court.person.notices == [("dom0", Notice("deny", "no", "+", "work", "@default"))]
    assert court.lines[0]["requested_target"] == "@default" and court.lines[0]["target"] is None


def test_whom_a_relay_claims_to_speak_for_is_logged() -> None:
    court = Court()
    assert court.ask("yes", untrusted_requested_source="far").answer() == wire.DENY
    assert court.lines[0]["claimed_source"] == "far" and court.lines[0]["source"] == "work"


def test_a_person_is_asked_what_the_rule_says_and_who_shows_the_callers_windows() -> None:
    court = Court("dvm")
    court.guivms["work"] = "gui"
    assert court.judge.at_once(Query("work", "vault", "ask+x"), court.now()) is None
    verdict = court.ask("ask+x", "debian")
    assert verdict.asked and b"target=dvm\n" in verdict.answer() and b"requested_target=debian" in verdict.answer()
    ((viewer, question),) = court.person.questions
    assert viewer == "gui" and (question.source, question.service, question.argument) == ("work", "ask", "+x")
    assert question.default_target == "vault" and question.icons == {"work": "appvm-red"}
    assert question.targets == tuple(sorted(question.targets)) and {"vault", "dvm", "debian"} <= set(question.targets)
    assert "work" not in question.targets and "hidden" not in question.targets and "dom0" not in question.targets
    assert court.lines[-1]["asked"] is True and court.person.notices == []


@pytest.mark.parametrize("service", ["ask", "asks-quietly", "asks-loudly"])
@pytest.mark.parametrize(("answer", "why"), [
    (None, "the person said no"), (NoAnswer("gone"), "gone"), ("dom0", "not offered"), ("work", "not offered"), ("", "not offered"),
])
def test_whatever_is_no_choice_refuses(service: str, answer: str | Exception | None, why: str) -> None:
    court = Court(answer)
    verdict = court.ask(service)
    assert verdict.answer() == wire.DENY and verdict.asked and why in str(court.lines[0]["why"])
    assert len(court.person.notices) == (service == "asks-loudly")
    assert court.lines[0]["rule"] is not None and court.lines[0]["asked"] is True


def test_a_choice_is_told_where_the_rule_says_so() -> None:
    court = Court("dvm")
    court.ask("asks-loudly")
    assert court.person.notices == [("dom0", Notice("allow", "asks-loudly", "+", "work", "dvm"))]


def test_nobody_is_asked_where_nobody_shows_the_windows() -> None:
    court = Court("vault")
    del court.guivms["work"]
    verdict = court.ask("ask")
    assert verdict.answer() == wire.DENY and court.person.questions == [] and "nobody can be asked" in str(court.lines[0]["why"])


@pytest.mark.parametrize(("target", "assume_yes", "answer"), [
    ("vault", True, wire.ALLOW), ("vault", False, wire.DENY), ("dom0", True, wire.DENY), ("", True, wire.DENY),
])
def test_who_only_evaluates_asks_nobody(target: str, assume_yes: bool, answer: bytes) -> None:
    court = Court("vault")
    verdict = court.ask("ask", target, just_evaluate=True, assume_yes=assume_yes)
    assert verdict.answer() == answer and not verdict.asked and court.person.questions == [] == court.person.notices


def test_a_question_that_counts_as_answered_is_answered_with_what_was_asked_for() -> None:
    court = Court("dvm")
    assert b"target=vault\n" in court.ask("ask", assume_yes=True).answer() and court.person.questions == []


CHANGES: dict[str, Callable[[Court], None]] = {
    "policy denies": lambda court: setattr(court, "rules", rules("ask * work @anyvm deny")),
    "policy allows": lambda court: setattr(court, "rules", rules("ask * work @anyvm allow")),
    "policy is broken": lambda court: setattr(court, "rules", CloisonError("broken")),
    "no longer offered": lambda court: setattr(court, "rules", rules("ask * work vault ask")),
    "target is another": lambda court: court.system["domains"].update(dvm=entry(40, template_for_dispvms=True)),  # type: ignore[index]
    "target is gone": lambda court: court.system["domains"].pop("dvm"),                                         # type: ignore[index]
    "source is another": lambda court: court.system["domains"].update(work=entry(41)),                          # type: ignore[index]
    "no facts": lambda court: setattr(court, "system", CloisonError("qubesd is gone")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("target", ["dvm", "@dispvm:dvm"])
def test_what_changes_while_a_person_thinks_makes_the_answer_none(change: str, target: str) -> None:
    court = Court(target)
    court.rules = rules("ask * work @anyvm ask\nask * work @dispvm:dvm ask")

    async def think() -> None:
        CHANGES[change](court)

    court.person.wait = think
    verdict = court.ask("ask")
    assert verdict.answer() == wire.DENY and court.lines[-1]["verdict"] == "deny"
    assert len(court.person.questions) == 1


def test_what_else_changes_meanwhile_does_no_harm() -> None:
    court = Court("dvm")

    async def think() -> None:
        assert isinstance(court.system, dict)
        court.system["domains"].update(vault=entry(42), new=entry(43))

    court.person.wait = think
    assert b"target=dvm\n" in court.ask("ask").answer()


def test_errors_deny_and_nobody_is_told() -> None:
    court = Court()
    court.system = CloisonError("qubesd can't be asked")
    verdict = court.ask("yes")
    assert verdict.answer() == wire.DENY and court.person.notices == []
    assert "qubesd can't be asked" in str(court.lines[0]["why"]) and court.lines[0]["rule"] is None


def test_a_broken_policy_denies_and_the_person_is_told() -> None:
    court = Court()
    court.rules = CloisonError("line 7")
    assert court.ask("yes").answer() == wire.DENY
    assert len(court.person.notices) == 1 and "line 7" in str(court.lines[0]["why"])


@pytest.mark.parametrize(("owner", "source", "target", "answer"), [
    ("gui", "work", "vault", wire.ALLOW), ("other", "work", "vault", b""), ("gui", "work", "dvm", b""),
    ("gui", "dvm", "vault", b""), ("gui", "work", "none", b""), ("gui", "none", "vault", b""),
])
def test_who_does_not_show_both_qubes_windows_is_told_nothing(owner: str, source: str, target: str, answer: bytes) -> None:
    court = Court()
    assert isinstance(court.system, dict)
    for name in ("work", "vault"):
        court.system["domains"][name]["tags"] = ["guivm-gui"]
    verdict = court.ask("yes", target, source, just_evaluate=True, window_owner=owner)
    assert verdict.answer() == answer and (verdict.outcome is NOT_THE_VIEWER) == (not answer)
    assert court.person.notices == []


@pytest.mark.parametrize(("kind", "most"), [("ask", MAX_QUESTIONS), ("no", MAX_NOTICES)])
def test_so_many_of_one_qube_are_with_the_person_and_another_has_its_own(kind: str, most: int) -> None:
    """What is beyond is refused without a word. Each that ends makes room."""
    court = Court("dvm")
    court.rules = rules("ask * @anyvm @anyvm ask\nno * @anyvm @anyvm deny")
    court.guivms["relay"] = "dom0"

    def reached() -> int:
        return len(court.person.questions) + len(court.person.notices)

    async def whole() -> None:
        over = asyncio.Event()
        court.person.wait = over.wait
        judged = [asyncio.ensure_future(court.judge.judge(Query("work", "vault", kind))) for _ in range(most)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reached() == most and not any(each.done() for each in judged)
        async with asyncio.timeout(PATIENCE):
            beyond = await court.judge.judge(Query("work", "vault", kind))
        assert beyond.answer() == wire.DENY and reached() == most
        other = asyncio.ensure_future(court.judge.judge(Query("relay", "vault", kind)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reached() == most + 1 and not other.done()
        judged.pop().cancel()                            # its caller has hung up
        await asyncio.sleep(0)
        judged.append(asyncio.ensure_future(court.judge.judge(Query("work", "vault", kind))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reached() == most + 2
        over.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(other, *judged)
        assert court.judge._questions == {} == court.judge._notices

    asyncio.run(whole())
