"""Causes of failed builds, from what the tools really said."""
from __future__ import annotations

import pytest

from cloison.templates.complaints import Cause, cause, last_words
from cloison.templates.contain import ToolFailed

AFTER = """\
E: apt-get update --error-on=any -oAPT::Status-Fd=<$fd> -oDpkg::Use-Pty=false failed
I: main() received signal PIPE: waiting for setup...
E: mmdebstrap failed to run"""
SAID = {
    "package": ("""\
I: downloading packages with apt...
Reading package lists...
Building dependency tree...
E: Unable to locate package nonsense
E: apt download failed: E: apt-get --yes install nonsense busybox-static -oAPT::Status-Fd=<$fd> failed""",
                "Debian's archive has no package nonsense in this suite", "apt-cache search"),
    "package without a candidate": ("E: Package 'python2' has no installation candidate",
                                    "Debian's archive has no package python2 in this suite", "apt-cache search"),
    "suite": ("""\
404  Not Found [IP: 192.0.2.1 80]
Reading package lists...
E: The repository 'http://deb.debian.org/debian nonsense Release' does not have a Release file.
E: The repository 'http://deb.debian.org/debian nonsense-updates Release' does not have a Release file.""",
              "the archive http://deb.debian.org/debian has no suite nonsense", "--suite"),
    "folder": ("""\
File not found - /nowhere/dists/trixie/Release (2: No such file or directory)
E: The repository 'file:/nowhere trixie Release' does not have a Release file.""",
               "the archive file:/nowhere has no suite trixie", "--mirror"),
    "refused": ("""\
Err:2 http://127.0.0.1:9/debian trixie-updates InRelease
Unable to connect to 127.0.0.1:9:
E: Failed to fetch http://127.0.0.1:9/debian/dists/trixie/InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111
E: Some index files failed to download. They have been ignored, or old ones used instead.""",
                "the archive http://127.0.0.1:9/debian can't be reached", "Is there a network?"),
    "refused, cut": ("Could not connect to mirror.example:80 (192.0.2.1). - connect (113: No route to host)",
                     "the archive mirror.example:80 can't be reached", "http_proxy"),
    "no network": ("connect (101: Network is unreachable)", "the archive can't be reached", "Is there a network?"),
    "host": ("""\
Err:1 http://nohost.invalid/debian trixie InRelease
Could not resolve 'nohost.invalid'
E: Failed to fetch http://nohost.invalid/debian/dists/trixie/InRelease  Could not resolve 'nohost.invalid'""",
             "the archive's host nohost.invalid is not known here", "Is there a network?"),
    "resolver": ("Temporary failure resolving 'deb.debian.org'",
                 "the archive's host deb.debian.org is not known here", "http_proxy"),
    "space": ("""\
E: Unable to locate package x
tar: ./usr/bin/x: Cannot write: No space left on device""", "the disk is full", "Free some space"),
    "space, in Python": ("OSError: [Errno 28] No space left on device", "the disk is full", "Free some space"),
    "space, for apt": ("E: You don't have enough free space in /var/cache/apt/archives/.", "the disk is full", "Free some space"),
    "key": ("""\
W: GPG error: http://x trixie InRelease: The following signatures couldn't be verified: NO_PUBKEY 6ED0E7B82643E131
E: The repository 'http://x trixie InRelease' is not signed.""",
            "the archive's signature can't be checked", "debian-archive-keyring"),
    "update": ("E: Failed to fetch http://x/pool/a.deb  404  Not Found [IP: 192.0.2.1 80]",
               "the archive has changed while it was read", "try again"),
    "sums": ("Hash Sum mismatch", "the archive has changed while it was read", "try again"),
    "conflict": ("a : Depends: b (>= 2) but it is not going to be installed\n"
                 "E: Unable to correct problems, you have held broken packages.",
                 "the packages do not go together", "--include"),
    "namespaces": ("unshare: write failed /proc/self/uid_map: Operation not permitted", "this user may not do what a build takes",
                   "cloison doctor"),
}


@pytest.mark.parametrize("which", SAID)
def test_what_went_wrong(which: str) -> None:
    said, sentence, advice = SAID[which]
    for lines in (said.splitlines(), (said + "\n" + AFTER).splitlines()):
        found = cause(lines)
        assert found is not None and found.sentence == sentence and advice in found.advice
    error = ToolFailed("mmdebstrap", 25, "/log", said.splitlines())
    assert str(error) == sentence and error.hint.endswith("All that mmdebstrap said: /log") and advice in error.hint
    assert "\n" not in error.hint


def test_what_is_not_known_is_told_by_its_last_words() -> None:
    lines = ["E: dpkg was interrupted", "", "I: main() received signal PIPE: waiting for setup...", "E: mmdebstrap failed to run"]
    assert cause(lines) is None and last_words(lines) == "E: dpkg was interrupted"
    assert last_words(["x" * 999]) == "x" * 120 and last_words(["", "I: success"]) == "" and last_words([]) == ""
    assert str(ToolFailed("mksquashfs", 1, "/log", [])) == "mksquashfs failed with status 1"
    assert str(ToolFailed("t", 1, "/log", lines)) == "t failed with status 1: E: dpkg was interrupted"
    assert ToolFailed("t", 1, "/log", lines).hint == "All that it said: /log"


def test_words_of_the_archive_s_are_cut() -> None:
    assert cause([f"E: Unable to locate package {'x' * 5000}"]) == Cause(
        f"Debian's archive has no package {'x' * 120} in this suite",
        "Look its name up with apt-cache search, or on packages.debian.org; a name may differ from suite to suite.")
