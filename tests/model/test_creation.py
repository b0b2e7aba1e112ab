"""How qubes are born and end in the model: what is refused, what they take over, and where their volumes are."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.plan.test_lifecycle import system

from cloison.errors import BadPropertyValue, BadRequest, BadValue, CloisonError, QubeExists, QubeNotFound
from cloison.model.creation import Birth, create, drop_preloaded, forget, preloaded
from cloison.model.domains import READY, System
from cloison.model.volumes import Pool

BIRTH = Birth("AppVM", "new", "red", "u-new", READY, template="tpl")


@pytest.fixture
def made() -> System:
    result = system()
    result.put_pool(Pool("other", "qcow2", {"revisions_to_keep": "7"}))
    result.put_pool(Pool("kernels", "linux-kernel", {}))
    result.journal.clear()
    return result


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"label": "pink"}, BadRequest, "no label 'pink'"), ({"label": ""}, BadRequest, "no label ''"),
    ({"name": "work"}, QubeExists, "work"),
    ({"template": "nobody"}, QubeNotFound, "nobody"), ({"template": "work"}, BadPropertyValue, "can't be the template of a AppVM"),
    ({"klass": "DispVM", "template": "work"}, BadValue, "not a template for disposables"),
    ({"klass": "DispVM", "template": "tpl"}, BadPropertyValue, "can't be the template of a DispVM"),
    ({"pool": "nowhere"}, CloisonError, "nowhere"), ({"pools": {"private": "nowhere"}}, CloisonError, "nowhere"),
    ({"pool": "kernels"}, CloisonError, "holds kernels"), ({"pools": {"private": "kernels"}}, CloisonError, "holds kernels"),
    ({"pools": {"root": "other"}}, CloisonError, "is a snapshot"), ({"template": None}, BadValue, "no default is set"),
])
def test_what_can_not_be_born_leaves_no_qube(
    made: System, change: dict[str, Any], error: type[CloisonError], words: str,
) -> None:
    """Where volumes are is found out last: what is written until then goes with the transaction."""
    with pytest.raises(error, match=words):
        create(made, replace(BIRTH, **change))
    assert "pool" in str(change) or "new" not in made.qubes


def test_the_default_template_is_used_where_none_is_named(made: System) -> None:
    made.set("default_template", "tpl")
    assert create(made, replace(BIRTH, template=None)).template is made.qube("tpl")
    made.qube("work").set("template_for_dispvms", True)
    made.set("default_dispvm", "work")
    assert create(made, replace(BIRTH, klass="DispVM", name="disp", template=None, dispid=3)).template is made.qube("work")


@pytest.mark.parametrize(("pool", "pools", "where"), [
    (None, {}, ("p", "p", "p")), ("other", {}, ("p", "other", "other")), (None, {"private": "other"}, ("p", "other", "p")),
    ("other", {"private": "p"}, ("p", "p", "other")),
])
def test_where_the_volumes_are(made: System, pool: str | None, pools: dict[str, str], where: tuple[str, str, str]) -> None:
    for name in ("root", "private", "volatile"):
        made.set(f"default_pool_{name}", "p")
    qube = create(made, replace(BIRTH, pool=pool, pools=pools))
    assert tuple(qube.volumes[name].pool for name in ("root", "private", "volatile")) == where
    kept = qube.volumes["private"].revisions_to_keep
    assert kept == (7 if qube.volumes["private"].pool == "other" else 1)


def test_a_named_kernel_pool_is_no_mistake(made: System) -> None:
    assert create(made, replace(BIRTH, pools={"kernel": "kernels"})).volumes["kernel"].pool == "kernels"


def test_a_disposable_takes_over_what_is_set_on_its_template(made: System) -> None:
    base = made.qube("work")
    base.set("template_for_dispvms", True)
    base.set("memory", 600)
    base.set_feature("mine", "1")
    base.features.update({"preload-dispvm": "disp9", "preload-dispvm-max": "3"})
    base.add_tag("tagged")
    base.put_text("firewall", "action=drop\n")
    qube = create(made, replace(BIRTH, klass="DispVM", template="work", dispid=5))
    assert (qube.get("memory"), qube.features.get("mine"), "tagged" in qube.tags, qube.texts["firewall"], qube.dispid) == (
        600, "1", True, "action=drop\n", 5)
    assert not [name for name in qube.features if name.startswith("preload")]
    assert qube.get("label") == "red"


def test_a_qube_that_is_not_finished_may_not_be_started(made: System) -> None:
    assert "qvm-clone" in create(made, replace(BIRTH, unfinished="qvm-clone")).features["prohibit-start"]
    assert "prohibit-start" not in create(made, replace(BIRTH, name="whole")).features


def test_birth_and_end_are_told(made: System) -> None:
    create(made, replace(BIRTH, tags=("created-by-dom0",)))
    assert [event.name for event in made.journal.events if event.name.startswith("domain-")][:1] == ["domain-add"]
    assert "created-by-dom0" in made.qube("new").tags
    made.journal.clear()
    forget(made.qube("new"))
    assert [event.name for event in made.journal.events] == ["domain-pre-delete", "domain-delete"] and "new" not in made.qubes


def test_one_that_waits_is_taken_off_the_list_when_it_ends(made: System) -> None:
    base = made.qube("work")
    base.set("template_for_dispvms", True)
    qube = create(made, replace(BIRTH, klass="DispVM", template="work", dispid=5))
    base.features["preload-dispvm"] = "other new more"
    made.journal.clear()
    drop_preloaded(base, ["nobody"])
    assert not list(made.journal.events)
    forget(qube)
    assert preloaded(base) == ["other", "more"]


@pytest.mark.parametrize(("updates", "feature"), [(True, False), (False, True)])
def test_whether_updates_are_looked_for_is_kept_at_birth(made: System, updates: bool, feature: bool) -> None:
    made.set("check_updates_vm", updates)
    assert ("check-updates" in create(made, BIRTH).features) is feature
