"""Why a tool that builds has failed, read from what it said: a sentence, and what helps. All it said stays in its log.

A table of the ways that were met with apt, mmdebstrap, mksquashfs and mke2fs. The first row that fits a line counts, so causes
stand before what follows from them. What was said is data of the archive's too: it only ever fills a sentence, cut to a length.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_WORD = 120
MADE_BY_A_FAILURE = "I: main() received signal"        # mmdebstrap to itself, once one of its parts has failed


class Cause(NamedTuple):
    """`sentence` is about what went wrong, `advice` about what to do."""

    sentence: str
    advice: str


_NETWORK = "Is there a network? --mirror URL names another Debian archive; behind a proxy, set http_proxy."
_ROWS = tuple((re.compile(pattern), Cause(sentence, advice)) for pattern, sentence, advice in (
    (r"No space left on device|You don't have enough free space|Disk quota exceeded",
     "the disk is full", "Free some space there, or put the installation on a larger disk."),
    (r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation candidate|Couldn't find any package by .* '(\S+)'",
     "Debian's archive has no package {0} in this suite",
     "Look its name up with apt-cache search, or on packages.debian.org; a name may differ from suite to suite."),
    (r"Could not resolve '([^']+)'|Temporary failure resolving '([^']+)'", "the archive's host {0} is not known here", _NETWORK),
    (r"Failed to fetch (\S+?)/dists/\S+  .*(?:[Cc]onnect|[Tt]imed out|[Tt]imeout|unreachable)",
     "the archive {0} can't be reached", _NETWORK),
    (r"(?:Could not|Unable to|Cannot initiate the) connect(?:ion)? to ([^ (]+)|Connection timed out|Network is unreachable",
     "the archive {0} can't be reached", _NETWORK),
    (r"NO_PUBKEY|GPG error: |signatures? (?:couldn't be|were|was) (?:verified|invalid)|repository '\S+ [^']*' is not signed",
     "the archive's signature can't be checked",
     "Install debian-archive-keyring (sudo apt install debian-archive-keyring), or use an archive that Debian has signed."),
    (r"The repository '(\S+) (\S+) Release' does not have a Release file", "the archive {0} has no suite {1}",
     "Check --suite (trixie, bookworm, sid) and --mirror."),
    (r"Hash Sum mismatch|File has unexpected size|404  Not Found", "the archive has changed while it was read",
     "It is being brought up to date: try again in some minutes, or with another --mirror."),
    (r"(\S+) : Depends: |Unable to correct problems, you have held broken packages|unmet dependencies",
     "the packages do not go together", "Leave some of --include out, or choose another suite."),
    (r"^unshare: |^newuidmap: |^newgidmap: |^setpriv: ",
     "this user may not do what a build takes", "cloison doctor says what is missing."),
))
_EMPTY = re.compile(r"^(?:I: .*|E: mmdebstrap failed to run|)$")


def cause(lines: Sequence[str]) -> Cause | None:
    """What they tell of the failure; None for what is not in the table."""
    for pattern, found in _ROWS:
        for line in lines:
            if match := pattern.search(line):
                words = [word[:MAX_WORD] for word in match.groups() if word]
                return Cause(_filled(found.sentence, words), found.advice)
    return None


def _filled(sentence: str, words: Sequence[str]) -> str:
    """A place that has no word is left out."""
    for number in range(2):
        place = f" {{{number}}}"
        sentence = sentence.replace(place, f" {words[number]}" if number < len(words) else "")
    return sentence


def last_words(lines: Sequence[str]) -> str:
    """The last line that says something."""
    return next((line[:MAX_WORD] for line in reversed(lines) if not _EMPTY.match(line)), "")
