"""The elements of a qubes.xml, read by expat within bounds: no document type, no entity, nothing deep or endless.

What they mean is `qubesxml`'s business; here is only what any reader of such a file needs.
"""
from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from cloison.errors import CloisonError
from cloison.model.properties import parse_bool, parse_int

MAX_BYTES = 16 << 20
MAX_DEPTH = 6               # qubes, domains, domain, devices, device, option
MAX_ELEMENTS = 500_000
MAX_ATTRIBUTES = 32


class BadQubesXml(CloisonError):
    """Not a qubes.xml, or one that contradicts itself. `str()` says where and why."""

    hint = "Nothing was taken from it. A store that Qubes OS itself can load is taken."


class _Bounded:
    """What expat calls: builds the elements, and ends at the first thing out of bounds. `name` is the file's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.builder = TreeBuilder()
        self._depth = self._count = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH:
            raise BadQubesXml(f"{self._name}: elements are nested deeper than {MAX_DEPTH}")
        if self._count > MAX_ELEMENTS or len(attributes) > MAX_ATTRIBUTES:
            raise BadQubesXml(f"{self._name}: more than {MAX_ELEMENTS} elements, or {MAX_ATTRIBUTES} attributes in one")
        self.builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self.builder.end(tag)

    def refuse(self, *_: object) -> None:
        """A document type is where entities are declared: none is needed, so none is read."""
        raise BadQubesXml(f"{self._name}: it declares a document type")


def elements(untrusted: bytes, root_tag: str = "qubes", name: str = "qubes.xml") -> Element:
    """The root element. Raises BadQubesXml, which begins with the file's name."""
    if len(untrusted) > MAX_BYTES:
        raise BadQubesXml(f"{name}: longer than {MAX_BYTES} bytes")
    bounded = _Bounded(name)
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = bounded.start
    parser.EndElementHandler = bounded.end
    parser.CharacterDataHandler = bounded.builder.data
    parser.StartDoctypeDeclHandler = bounded.refuse
    try:
        parser.Parse(untrusted, True)
    except expat.ExpatError as error:
        raise BadQubesXml(f"{name}: line {error.lineno}: {expat.ErrorString(error.code)}") from error
    root = bounded.builder.close()
    if root.tag != root_tag:
        raise BadQubesXml(f"{name}: its root is {root.tag[:30]!r}, not {root_tag!r}")
    return root


def children(parent: Element, group: str, tag: str) -> Iterator[Element]:
    for container in parent.iterfind(group):
        yield from container.iterfind(tag)


def attribute(node: Element, name: str, where: str) -> str:
    value = node.get(name)
    if not value:
        raise BadQubesXml(f"{where}: an element {node.tag} has no {name}")
    return value


def named_texts(parent: Element, group: str, tag: str, where: str) -> dict[str, str]:
    """Elements with a name and a text; each name once. `ref` is an older spelling of a reference."""
    pairs: dict[str, str] = {}
    for node in children(parent, group, tag):
        name = attribute(node, "name", where)
        if name in pairs:
            raise BadQubesXml(f"{where}: {tag} {name[:60]!r} is there twice")
        pairs[name] = node.get("ref") or node.text or ""
    return pairs


def parse_number(text: str, least: int, most: int, where: str) -> int:
    try:
        number = parse_int(text[:20])
    except CloisonError as error:
        raise BadQubesXml(f"{where}: {error}") from error
    if not least <= number <= most:
        raise BadQubesXml(f"{where}: {number} is not between {least} and {most}")
    return number


def parse_flag(text: str, where: str) -> bool:
    try:
        return parse_bool(text)
    except CloisonError as error:
        raise BadQubesXml(f"{where}: {error}") from error
