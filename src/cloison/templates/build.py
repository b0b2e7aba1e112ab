"""Builds a template: Debian's tree with our agent in it as an ext4 image, and the kernel to boot it with.

The kernel's download and the tree are made side by side. All is done in one work folder, by tools that die with us; what
leaves it is only the kernel (into its pool, whole) and, by the caller's hand, the image.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from cloison.errors import HostError
from cloison.runtime.paths import Paths, larger_disk
from cloison.templates import agent_package, kernels, offers, sources
from cloison.templates.contain import Tools
from cloison.values import InvalidValue, QubeName

GIB = 1 << 30
DEFAULT_SIZE = 10 * GIB
MIN_SIZE, MAX_SIZE = 2 * GIB, 1024 * GIB
NEEDED_SPACE = 3 * GIB       # on the data disk while building, with what apt fetches
MAX_INCLUDED = 200
OFFERS, MAX_OFFERS = "offers.json", 1 << 17
# Small, but a shell that a person can work in. Later issues add through the agent's Depends what they need.
BASE = (
    "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "udev", "kmod", "python3", "iproute2", "iputils-ping", "netbase",
    "ca-certificates", "procps", "less", "nano", "sudo", "curl", agent_package.NAME,
)
_SUITE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_MIRROR = re.compile(r"(https?|file|copy):[!-~]{1,255}")

# What mmdebstrap says as it goes, and how far that is, in percent of its own work.
_MARKS = (
    ("I: running apt-get update", 3), ("I: downloading packages", 12), ("I: extracting archives", 30),
    ("I: installing essential packages", 40), ("I: installing remaining packages", 60), ("I: cleaning", 97),
    ("I: success", 100),
)

Report = Callable[[int, str], None]
"""Progress: percent of the whole build, 0 to 100, never falling; and what is being done, in a few words."""


class NoSpace(HostError):
    """The disk has no room for a build."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.hint = larger_disk()


@dataclass(frozen=True)
class BuildRequest:
    """What to build. `include`: more Debian packages; `size` in bytes; `mirror`: a Debian archive's URL, or the usual one."""

    name: str
    suite: str
    include: tuple[str, ...] = ()
    size: int = DEFAULT_SIZE
    mirror: str | None = None
    kernel: str = kernels.PACKAGE

    def __post_init__(self) -> None:
        """Raises InvalidValue with what is wrong in words."""
        QubeName(self.name)
        if not _SUITE.fullmatch(self.suite):
            raise InvalidValue(f"{self.suite[:60]!r} is not the name of a Debian suite")
        if len(self.include) > MAX_INCLUDED:
            raise InvalidValue(f"at most {MAX_INCLUDED} packages can be included, not {len(self.include)}")
        for package in (*self.include, self.kernel):
            if not _PACKAGE.fullmatch(package):
                raise InvalidValue(f"{package[:60]!r} is not the name of a Debian package")
        if not MIN_SIZE <= self.size <= MAX_SIZE or self.size % (1 << 20):
            limits = f"{MIN_SIZE >> 30} GiB to {MAX_SIZE >> 30} GiB"
            raise InvalidValue(f"the size must be whole MiB from {limits}, not {self.size} bytes")
        if self.mirror is not None and not _MIRROR.fullmatch(self.mirror):
            raise InvalidValue(f"{self.mirror[:60]!r} is not the URL of a mirror (http, https, file or copy)")


@dataclass(frozen=True)
class Built:
    """`image`: a raw ext4 image in the work folder, the caller's to move away. `kernel`: a version in the pool. `offers`: what it
    says of itself, as features a qube requests, and the agent's digest. `include`: packages that were asked for besides.
    """

    image: str
    kernel: str
    size: int
    offers: Mapping[str, str] = field(default_factory=lambda: dict(offers.ALWAYS))
    include: tuple[str, ...] = ()


def build(request: BuildRequest, paths: Paths, folder: str, tools: Tools, report: Report) -> Built:
    """Make the image and install the kernel. `folder` is a work folder of `work`. Raises HostError.

    Stopped from another thread or by an exception in this one (Ctrl-C), it ends its tools and lets the exception pass.
    """
    require_space(paths, NEEDED_SPACE)
    lines = sources.build_lines(request.suite, request.mirror)
    progress, agent = _Progress(report), agent_package.digest()
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            kernel = pool.submit(
                kernels.install, paths, tools, folder, suite=request.suite, lines=lines, package=request.kernel,
                on_line=progress.kernel_line,
            )
            image = pool.submit(_image, request, tools, folder, lines, progress)
            _join(tools, kernel, image)
        except BaseException:
            tools.stop()
            raise
    said = {**_offers(folder), agent_package.FEATURE: agent}
    return Built(image.result(), kernel.result(), request.size, said, request.include)


def _join(tools: Tools, *jobs: Future[str]) -> None:
    """Wait for all; at the first failure end the others' tools, and raise that failure, not the ones it caused."""
    done, rest = wait(jobs, return_when=FIRST_EXCEPTION)
    failures = [error for job in done if (error := job.exception()) is not None]
    if failures:
        tools.stop()
        wait(rest)
        raise failures[0]


def _image(request: BuildRequest, tools: Tools, folder: str, lines: list[str], progress: _Progress) -> str:
    repository = agent_package.build(tools, folder)
    tree, image = os.path.join(folder, "tree"), os.path.join(folder, "root.img")
    include = ",".join(dict.fromkeys((*BASE, *request.include)))
    tools.run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--verbose", kernels.APT_AS_ROOT,
         f"--include={include}", request.suite, tree, *lines, f"deb [trusted=yes] copy:{repository} ./"],
        folder=folder, on_line=progress.tree_line,
    )
    progress.packing()
    text = os.path.join(folder, "sources.list")
    with open(text, "w", encoding="utf-8") as file:
        file.write(sources.image_text(request.suite, request.mirror))
    said = os.path.join(folder, OFFERS)
    tools.run([sys.executable, "-m", "cloison.templates.pack", tree, image, str(request.size), text, said], folder=folder)
    progress.done()
    return image


def _offers(folder: str) -> dict[str, str]:
    """What the packing process has read. Raises HostError."""
    with open(os.path.join(folder, OFFERS), "rb") as file:
        data = json.loads(file.read(MAX_OFFERS))
    if not isinstance(data, dict) or not all(isinstance(text, str) for pair in data.items() for text in pair):
        raise HostError("the build has not said what the template offers")
    return data


def require_space(paths: Paths, needed: int) -> None:
    """Raises NoSpace if less is free for a build of a template or kernel."""
    free = shutil.disk_usage(paths.data).free
    if free < needed:
        raise NoSpace(f"a build needs {needed >> 30} GiB free at {paths.data}, and there are {free >> 20} MiB")


class _Progress:
    """Weighs the stages: the tree is most of the work; the kernel is made beside it and shows only as words."""

    TREE, ALL = 85, 100

    def __init__(self, report: Report) -> None:
        self._report, self._percent = report, 0

    def tree_line(self, line: str) -> None:
        for mark, percent in _MARKS:
            if line.startswith(mark):
                self._set(percent * self.TREE // 100, line.removeprefix("I: ").rstrip("."))

    def kernel_line(self, line: str) -> None:
        if line.startswith("I: downloading"):
            self._set(self._percent, "downloading the kernel")

    def packing(self) -> None:
        self._set(self.TREE, "writing the image")

    def done(self) -> None:
        self._set(self.ALL, "image written")

    def _set(self, percent: int, words: str) -> None:
        self._percent = max(self._percent, percent)
        self._report(self._percent, words)
