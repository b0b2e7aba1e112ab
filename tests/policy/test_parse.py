"""Text to rules: every refusal with its place, includes, the 4.0 format, and bounds. A fault anywhere means no policy."""
from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.support import reader, rules

from cloison.policy.memory import MappingReader
from cloison.policy.parse import MAX_DEPTH, MAX_FILE, MAX_READS, MAX_RULES, PolicySyntaxError, Root, lint, parse, parse_rule
from cloison.policy.rules import Rule

OK = "s * @anyvm @anyvm allow"
FAULTS = [
    ("s * work", "field-count"), ("s", "field-count"), ("s * a b", "field-count"),
    ("s+a * a b allow", "service-chars"), ("s/ * a b allow", "service-chars"), ("é * a b allow", "service-chars"),
    ("s a a b allow", "argument-plus"), ("s +a/b a b allow", "argument-chars"), ("s +* a b allow", "argument-chars"),
    ("* + a b allow", "wildcard-service-arg"),
    ("s * @default b allow", "token"), ("s * @dispvm b allow", "token"), ("s * a @foo allow", "token"),
    ("s * a @tag: allow", "token-empty"),
    ("s * a b Allow", "action"), ("s * a b permit", "action"),
    ("s * a b allow target=@default", "token"), ("s * a b allow target=", "token-empty"), ("s * a b allow target=*", "token"),
    ("s * a b allow #comment", "param-syntax"), ("s * a b allow,user=x", "action"),
    ("s * a b allow rule=x", "param-unknown"), ("s * a b allow default_target=x", "param-unknown"),
    ("s * a b deny user=x", "param-unknown"), ("s * a b deny autostart=no", "param-unknown"),
    ("s * a b deny target=x", "param-unknown"),
    ("s * a b allow user=a user=a", "param-duplicate"),
    ("s * a b allow notify=true", "param-bool"), ("s * a b ask autostart=", "param-bool"),
    ("s * a @default allow", "allow-default-needs-target"),
    ("!includes x", "directive"), ("! include x", "directive"), ("!", "directive"),
    ("!include", "directive-params"), ("!include a b", "directive-params"), ("!compat-4.0 x", "directive-params"),
    ("!include-service s *", "directive-params"), ("!include-service s/ * x", "service-chars"),
    ("!include-service s a x", "argument-plus"),
    ("!include nothing", "include-missing"), ("!include include", "include-missing"), ("!include /etc/x", "include-missing"),
    ("!include-dir nothing", "include-dir-missing"), ("!include-service s * nothing", "include-missing"),
]


def fault(files: MappingReader) -> PolicySyntaxError:
    with pytest.raises(PolicySyntaxError) as caught:
        parse(files)
    return caught.value


def lines_of(parsed: Sequence[Rule]) -> list[str]:
    return [str(rule) for rule in parsed]


@pytest.mark.parametrize(("line", "kind"), FAULTS)
def test_a_fault_is_placed_and_nothing_else_counts(line: str, kind: str) -> None:
    found = fault(reader({"10-good.policy": OK, "20-bad.policy": f"# comment\n{OK}\n\n{line}\n{OK}\n", "include/x": ""}))
    assert (found.kind, found.file, found.line) == (kind, "20-bad.policy", 4)
    assert str(found).startswith("20-bad.policy:4: ")
    assert found.hint


@pytest.mark.parametrize("line", [
    "s * a b allow", "s + a b deny", "s +a+b-c._ a b ask", "* * * * deny notify=no", "s * a @default allow target=dom0",
    "s * a b allow target=@dispvm:c user=root autostart=no notify=yes", "s * a b ask target=c default_target=@dispvm user=u",
    "s * @dispvm:a @dispvm:@tag:b ask",
])
def test_a_rule_is_written_as_it_was_read(line: str) -> None:
    assert lines_of(rules(line).all) == [line]
    assert str(parse_rule(line, "x")) == line


def test_defaults_of_parameters() -> None:
    allow, ask, deny = (rule.action for rule in rules("s * a b allow\ns * a b ask\ns * a b deny").all)
    assert (allow.notify, ask.notify, deny.notify) == (False, False, True)
    assert allow.autostart and ask.autostart
    assert (allow.user, allow.target, ask.default_target) == (None, None, None)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_line_ends_and_white_space(end: str) -> None:
    parsed = rules(end.join(["\u00a0s\u2003*\u3000a\x0cb allow \t", "  # comment", "\x0b", "s * a b\x85deny"]))
    assert [(str(rule), rule.line) for rule in parsed.all] == [("s * a b allow", 1), ("s * a b deny", 4)]


def test_a_line_is_ended_by_nothing_else() -> None:
    assert fault(reader({"a.policy": "s * a b allow\x0cs * a b allow"})).kind == "param-syntax"


def test_files_are_read_in_order_of_their_names_wherever_they_are() -> None:
    parsed = parse(reader(
        {
            "20.policy": OK, "100.policy": OK, "b.policy": "s * same name allow",
            ".hidden.policy": "bad", "README": "bad", "a.rpmnew": "bad",
        },
        {"b.policy": OK, "15.policy": OK},
    ))
    assert [rule.place for rule in parsed.all] == ["100.policy:1", "run/15.policy:1", "20.policy:1", "run/b.policy:1"]


@pytest.mark.parametrize("name", ["A.policy", "a b.policy", "a+b.policy", "é.policy", "a\n.policy"])
def test_a_misspelt_file_name_makes_the_policy_invalid(name: str) -> None:
    for files in (reader({name: ""}), reader({}, {name: ""}), reader({"a.policy": "!include-dir d", f"d/{name}": ""})):
        found = fault(files)
        assert (found.kind, found.file, found.line) == ("filename", None, None)


def test_includes() -> None:
    parsed = parse(reader({
        "a.policy": "!include include/one\n!include-service t +x include/service\n!include-dir dir/\n",
        "include/one": f"{OK}\n!include include/../include/two",
        "include/two": "u * a b deny",
        "include/service": "a b ask,default_target=c\n$include:include/more",
        "include/more": "$anyvm $adminvm deny",
        "dir/2.policy": OK, "dir/1.policy": OK, "dir/ignored": "bad", "dir/below/x.policy": "bad",
    }))
    assert [(str(rule), rule.place) for rule in parsed.all] == [
        (OK, "include/one:1"), ("u * a b deny", "include/two:1"),
        ("t +x a b ask default_target=c", "include/service:1"), ("t +x @anyvm @adminvm deny", "include/more:1"),
        (OK, "dir/1.policy:1"), (OK, "dir/2.policy:1"),
    ]


@pytest.mark.parametrize(("line", "kind"), [
    ("* +a/b a b allow", "argument-chars"), ("s a/b a b allow", "argument-chars"), ("* x a b allow", "argument-plus"),
    ("s * a b allow foo=1 x", "param-syntax"), ("s * a b allow foo=1 notify=z", "param-bool"),
    ("s * a b allow foo=1 user=a user=b", "param-duplicate"), ("s * a b allow target=* foo=1", "param-unknown"),
    ("s * a b deny autostart=z", "param-bool"), ("s * @x b nothing", "token"),
])
def test_of_two_faults_in_a_line_it_is_known_which_is_told(line: str, kind: str) -> None:
    assert fault(reader({"a.policy": line})).kind == kind


@pytest.mark.parametrize(("line", "kind"), [
    (",", "field-count"), (",# no comment", "action"), (",!include more", "field-count"), ("!,include more", "directive"),
    ("$include:", "directive-params"),
])
def test_in_service_format_only_what_is_written_first_makes_a_comment_or_a_directive(line: str, kind: str) -> None:
    found = fault(reader({"a.policy": "!include-service s * svc", "svc": f"#,\n{line}", "more": "a b allow"}))
    assert (found.kind, found.file, found.line) == (kind, "svc", 2)


def test_a_file_has_one_name_however_an_include_spells_it() -> None:
    found = fault(reader({"a.policy": "!include ./d//x", "d/x": "bad"}))
    assert (found.file, found.line) == ("d/x", 1)
    found = fault(reader({"a.policy": "!include a.policy/../a.policy"}))
    assert found.kind == "include-loop"


@pytest.mark.parametrize("line", ["!include-service s * x", "!include-dir .", "!compat-4.0"])
def test_a_file_in_service_format_only_includes(line: str) -> None:
    found = fault(reader({"a.policy": "!include-service s * svc", "svc": f"a b allow\n{line}"}))
    assert (found.kind, found.file, found.line) == ("directive", "svc", 2)


def test_a_runtime_file_includes_below_its_own_folder() -> None:
    parsed = parse(reader({"x": "s * main b allow"}, {"a.policy": "!include x", "x": OK}))
    assert [rule.place for rule in parsed.all] == ["run/x:1"]


def test_the_4_0_format() -> None:
    parsed = parse(reader({"35.policy": "!compat-4.0"}, legacy={
        "b": "$anyvm $dispvm:$tag:t allow,user=root", "a": "@anyvm dom0 deny", "a+z": "x y allow", "a+b": "",
        "a.rpmsave": "bad", "a.rpmnew": "bad", "a.swp": "bad", ".a": "bad", "a~": "bad",
    }))
    assert [(str(rule), rule.place) for rule in parsed.all] == [
        ("a +b @anyvm @anyvm deny", "legacy/a+b:None"), ("a +b @anyvm @adminvm deny", "legacy/a+b:None"),
        ("a +z x y allow", "legacy/a+z:1"),
        ("a +z @anyvm @anyvm deny", "legacy/a+z:None"), ("a +z @anyvm @adminvm deny", "legacy/a+z:None"),
        ("a * @anyvm dom0 deny", "legacy/a:1"), ("b * @anyvm @dispvm:@tag:t allow user=root", "legacy/b:1"),
    ]


def test_a_fault_in_a_4_0_file_is_placed_there() -> None:
    found = fault(reader({"35.policy": "!compat-4.0"}, legacy={"a": "\nx y sure"}))
    assert (found.kind, found.file, found.line) == ("action", "legacy/a", 2)


@pytest.mark.parametrize("files", [
    {"a.policy": "!include a.policy"},
    {"a.policy": "!include b", "b": "!include a.policy"},
    {"a.policy": "!include-dir ."},
    {"a.policy": "!include-service s * b", "b": "!include b"},
    {"a.policy": "!include ./a.policy"},
    {"a.policy": "!include x0", **{f"x{n}": f"!include x{n + 1}" for n in range(MAX_DEPTH)}, f"x{MAX_DEPTH}": ""},
])
def test_circles_and_depth(files: dict[str, str]) -> None:
    found = fault(reader(files))
    assert (found.kind, found.file, found.line) == ("include-loop", None, None)


def test_the_greatest_depth() -> None:
    chain = {f"x{n}": f"!include x{n + 1}" for n in range(MAX_DEPTH - 2)}
    assert lines_of(parse(reader({"a.policy": "!include x0", **chain, f"x{MAX_DEPTH - 2}": OK})).all) == [OK]


def test_sizes_are_bounded() -> None:
    assert rules("#" * MAX_FILE).all == ()
    assert fault(reader({"a.policy": "#" * (MAX_FILE + 1)})).kind == "too-large"
    many = {"a.policy": "!include x\n" * 64, "x": "!include y\n" * 64, "y": "!include z\n" * 64, "z": ""}
    assert fault(reader(many)).text == f"the policy reads more than {MAX_READS} files"


def test_the_number_of_rules_is_bounded() -> None:
    half = "!include x\n" * (MAX_RULES // 1024)
    found = fault(reader({"a.policy": f"{half}{OK}", "x": f"{OK}\n" * 1024}))
    assert (found.kind, found.file, found.line) == ("too-large", "a.policy", MAX_RULES // 1024 + 1)


class Unreadable(MappingReader):
    """Fails for one path, as a real folder may."""

    def __init__(self, root: Root, path: str, error: Exception) -> None:
        super().__init__({
            Root.MAIN: {"a.policy": b"!compat-4.0"}, Root.RUNTIME: {"b.policy": b""}, Root.LEGACY: {"s": b"a b deny"},
        })
        self._fails, self._error = (root, path), error

    def names(self, root: Root, folder: str) -> Sequence[str]:
        if (root, folder) == self._fails:
            raise self._error
        return super().names(root, folder)

    def content(self, root: Root, path: str) -> bytes:
        if (root, path) == self._fails:
            raise self._error
        return super().content(root, path)


@pytest.mark.parametrize(("root", "path", "kind", "file"), [
    (Root.MAIN, ".", "folder", None), (Root.RUNTIME, ".", "folder", None),
    (Root.LEGACY, ".", "include-dir-missing", "a.policy"),
    (Root.MAIN, "a.policy", "file", None), (Root.RUNTIME, "b.policy", "file", None),
    (Root.LEGACY, "s", "include-missing", "a.policy"),
])
def test_what_can_not_be_read_makes_the_policy_invalid(root: Root, path: str, kind: str, file: str | None) -> None:
    found = fault(Unreadable(root, path, PermissionError("no")))
    assert (found.kind, found.file) == (kind, file)


def test_a_nul_in_a_path_is_a_fault_of_the_line() -> None:
    class Strict(MappingReader):
        def content(self, root: Root, path: str) -> bytes:
            if "\0" in path:
                raise ValueError("embedded null byte")
            return super().content(root, path)

    found = fault(Strict({Root.MAIN: {"a.policy": b"!include a\0b"}, Root.RUNTIME: {}, Root.LEGACY: {}}))
    assert (found.kind, found.line) == ("include-missing", 1)


def test_bytes_that_are_no_text() -> None:
    assert fault(reader({"a.policy": b"\xff"})).kind == "encoding"


def test_lint_names_every_fault() -> None:
    content = f"{OK}\nbad\n!include nowhere\n!what\n".encode()
    assert [(found.kind, found.line) for found in lint(content, "x")] == [("field-count", 2), ("directive", 4)]
    service = b"$anyvm dom0 allow,user=root\na b\n$include:x\n!include-dir y\n"
    assert [(found.kind, found.line) for found in lint(service, "x", True)] == [("field-count", 2), ("directive", 4)]
    assert [found.kind for found in lint(b"\xff", "x")] == ["encoding"]


WORDS = st.sampled_from([
    "s", "*", "+", "+a", "@anyvm", "@dispvm:", "@tag:x", "allow", "ask", "deny", "user=", "target=@dispvm", ",", "=",
    "!include", "!include-dir", ".", "a.policy", "b", "!compat-4.0", "$include:", "\0", "\n", "\r", "\t",
])


@given(st.lists(WORDS).map(" ".join), st.text())
def test_any_text_is_rules_or_a_fault(words: str, text: str) -> None:
    for content in (words, text):
        try:
            parsed = parse(reader({"a.policy": content, "b": words}, legacy={"s": words, "s+a": content}))
        except PolicySyntaxError as found:
            assert found.kind
            assert str(found)
        else:
            assert all(len(str(rule).split()) >= 5 for rule in parsed.all)


@given(st.binary())
def test_any_bytes_are_rules_or_a_fault(content: bytes) -> None:
    try:
        parse(reader({"a.policy": content}))
    except PolicySyntaxError as found:
        assert found.kind
