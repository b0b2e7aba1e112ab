"""Where a template's packages come from: apt source lines for a suite.

A host that runs the same Debian suite has a mirror near it in its own apt configuration, and that is used for the
build. What is written into the image is the public mirror, or the one the user named: a host's private mirror is not
told to every qube.
"""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

PUBLIC = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
UNRELEASED = ("sid", "unstable", "experimental")   # these have neither updates nor security archives
MAX_FILE = 1 << 20
_OPTIONS = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True)
class Source:
    """One archive. `components` are words like `main`."""

    uri: str
    suite: str
    components: tuple[str, ...] = ("main",)

    def line(self, options: str = "") -> str:
        return " ".join(word for word in ("deb", options, self.uri, self.suite, *self.components) if word)


def build_lines(suite: str, mirror: str | None, apt: str = "/etc/apt") -> list[str]:
    """Lines for the build itself. `apt` is the host's apt configuration."""
    wanted = sources(suite, mirror) if mirror else (host_sources(suite, apt) or sources(suite, None))
    options = f"[signed-by={KEYRING}]" if os.path.exists(KEYRING) else ""
    return [source.line(options) for source in wanted]


def image_text(suite: str, mirror: str | None) -> str:
    """Content of the image's sources.list."""
    return "".join(source.line() + "\n" for source in sources(suite, mirror))


def sources(suite: str, mirror: str | None) -> list[Source]:
    """The usual archives of a suite; a named mirror stands for the main archive, and security stays with Debian."""
    main = Source(mirror or PUBLIC, suite)
    if suite in UNRELEASED:
        return [main]
    return [main, Source(mirror or PUBLIC, f"{suite}-updates"), Source(SECURITY, f"{suite}-security")]


def host_sources(suite: str, apt: str) -> list[Source]:
    """The host's own archives of this Debian suite; empty unless it has the suite itself."""
    wanted = (suite, f"{suite}-updates", f"{suite}-security")
    names = [f"{apt}/sources.list", *sorted(glob.glob(f"{apt}/sources.list.d/*"))]
    found: list[Source] = []
    for name in names:
        for source in _read(name):
            if source.suite in wanted and "main" in source.components and source.uri.startswith(("http://", "https://")):
                found.append(Source(source.uri, source.suite))
    is_debian = any(source.suite == suite for source in found)
    return list(dict.fromkeys(found)) if is_debian else []


def _read(name: str) -> Iterator[Source]:
    """Binary sources of one file of apt's, in either of its formats. Unreadable or foreign files give none."""
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_FILE)
    except OSError:
        return
    if name.endswith(".list"):
        yield from _one_line(text)
    elif name.endswith(".sources"):
        yield from _deb822(text)


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        words = _OPTIONS.sub(" ", line.split("#", 1)[0]).split()
        if len(words) >= 4 and words[0] == "deb":
            yield Source(words[1], words[2], tuple(words[3:]))


def _deb822(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {key.strip().lower(): value.split() for key, colon, value in (line.partition(":") for line in lines) if colon}
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield Source(uri, suite, tuple(fields.get("components", [])))
