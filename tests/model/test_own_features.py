"""Own features: the table, what it lets pass, and the document made from it."""
from __future__ import annotations

from pathlib import Path

import pytest

from cloison.errors import BadValue
from cloison.model import own_features
from cloison.model.features import check_meaning, check_name
from cloison.model.own_features import OWN_FEATURES, Kind

ROOT = Path(__file__).parents[2]
SOURCES = [path for path in (ROOT / "src/cloison").rglob("*.py") if path.name != "own_features.py"]


def test_the_document_is_made_from_the_table(request: pytest.FixtureRequest) -> None:
    document = ROOT / "docs/features.md"
    if request.config.getoption("--regenerate"):
        document.write_text(own_features.document())
    assert document.read_text() == own_features.document()


@pytest.mark.parametrize("feature", OWN_FEATURES, ids=lambda feature: feature.name)
def test_each_has_a_name_that_can_be_set_and_a_sentence(feature: own_features.OwnFeature) -> None:
    assert check_name(feature.name) == feature.name
    assert feature.doc.endswith(".") and all(feature[2:])
    assert "|" not in "".join(feature[3:])


def test_no_name_is_there_twice_and_each_is_used() -> None:
    names = [feature.name for feature in OWN_FEATURES]
    assert len(set(names)) == len(names)
    texts = "".join(path.read_text() for path in SOURCES)
    constants = {value: name for name, value in vars(own_features).items() if isinstance(value, str)}
    for name in names:
        assert name.removeprefix("service.") in texts or constants[name] in texts, name


@pytest.mark.parametrize("name", [feature.name for feature in OWN_FEATURES if feature.kind is Kind.COUNT])
def test_a_count_is_a_number_of_seven_digits_at_most(name: str) -> None:
    for value in ("0", "256", "9999999"):
        check_meaning(name, value)
    for value in ("", "-1", "x", "1.5", "10000000", "\u0664"):
        with pytest.raises(BadValue, match=f"feature {name} takes a number"):
            check_meaning(name, value)


def test_other_features_may_have_any_value() -> None:
    for name in ("service.fresh-daemons", "cloison-include", "mine"):
        own_features.check(name, "any,text")
