"""The host's own package repositories, as its package manager's files name them: read, never changed."""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

APT, YUM = "etc/apt", "etc/yum.repos.d"
_OFF = ("no", "false", "0", "disabled", "off")
_ODD = re.compile(r"[^A-Za-z0-9._-]+")
ID_MAX = 64
MOST = 200                               # repositories that are listed


def listed(root: str = "/") -> list[tuple[str, str, str]]:
    """Id, `enabled` or `disabled`, and name of each. What can't be read is left out."""
    found: dict[str, tuple[str, str, str]] = {}
    for file, name, enabled in _all(root):
        shown = "".join(character if character.isprintable() else "_" for character in name)
        stem = _ODD.sub("-", f"{os.path.basename(file).rpartition('.')[0]}")[:ID_MAX - 4]
        number = 1 + sum(one.rpartition("-")[0] == stem for one in found)
        found[f"{stem}-{number}"] = (f"{stem}-{number}", "enabled" if enabled else "disabled", shown)
    return list(found.values())[:MOST]


def _all(root: str) -> Iterator[tuple[str, str, bool]]:
    """File, name, and whether it is on."""
    apt = os.path.join(root, APT)
    for path in sorted([os.path.join(apt, "sources.list"), *glob.glob(f"{apt}/sources.list.d/*.list")]):
        for line in _text(path).splitlines():
            words = [word for word in re.sub(r"\[[^]]*\]", "", line).split("#")[0].split() if word]
            if len(words) >= 3 and words[0] == "deb":
                yield path, " ".join(words[1:]), True
    for path in sorted(glob.glob(f"{apt}/sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", _text(path)):
            fields = _fields(stanza, ":")
            if "uris" in fields and "deb" in fields.get("types", "").split():
                name = " ".join(fields[key] for key in ("uris", "suites", "components") if fields.get(key))
                yield path, name, fields.get("enabled", "yes").lower() not in _OFF
    for path in sorted(glob.glob(os.path.join(root, YUM, "*.repo"))):
        for section in re.split(r"(?m)^\[", _text(path))[1:]:
            fields = _fields(section, "=")
            yield path, fields.get("name") or section.partition("]")[0], fields.get("enabled", "1").lower() not in _OFF


def _fields(text: str, separator: str) -> dict[str, str]:
    """`KEY: VALUE` lines; lines that begin with a space go on with the value before."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace() and key:
            fields[key] = f"{fields[key]} {line.strip()}".strip()
        elif separator in line:
            key, _, value = line.partition(separator)
            key = key.strip().lower()
            fields[key] = value.strip()
    return fields


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
