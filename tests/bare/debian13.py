"""Runs a command in a bare Debian 13 on this machine, by default the whole suite: `make test-debian13`.

The root is made by mmdebstrap once and kept; what the suite needs, `make test` installs there, as on a person's machine. The
command sees a clean checkout of HEAD, in mount and pid namespaces of its own: end this program in any way and every process
and mount of it is gone. apt and pip there are set up as on this machine, anew at each run, so both need no word here.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloison.templates import sources
from cloison.templates.contain import contained

SUITE = "trixie"
BASE = "make,python3,python3-venv,ca-certificates,procps,util-linux"
CHECKOUT = "srv/cloison"                  # below the root, where any user may look; .venv in it is kept between runs
HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
GRACE = 20.0                              # seconds that a Ctrl-C leaves the command to end by itself


@dataclass(frozen=True)
class PipSetup:
    """`text`: a pip.conf; `folders`: of the host, seen inside; `files`: to copy to the same path."""

    text: str
    folders: tuple[str, ...]
    files: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=default_root(os.environ), help="where the Debian is kept (%(default)s)")
    parser.add_argument("--anew", action="store_true", help="make the Debian anew")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="instead of `make test`")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        with _alone(asked.root):
            if asked.anew or not (asked.root / "etc/debian_version").exists():
                _make_root(asked.root)
            folders = _set_up(asked.root)
            _lay_checkout(asked.root)
            command = [word for word in asked.command if word != "--"] or ["make", "test"]
            return run_inside(asked.root, command, folders)
    except KeyboardInterrupt:
        print("interrupted: no process and no mount is left", file=sys.stderr)
        return 130


def default_root(environment: Mapping[str, str]) -> Path:
    cache = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "cloison", "debian-13")


def apt_lines(own_suite: str, apt: str = "/etc/apt") -> list[str]:
    """Sources of the suite: this machine's own Debian mirrors if it is a Debian, else the public ones."""
    own = sources.host_sources(own_suite, apt) if own_suite else []
    found = [sources.Source(source.uri, SUITE + source.suite.removeprefix(own_suite)) for source in own]
    return [source.line() for source in found or sources.sources(SUITE, None)]


def pip_setup(config: str) -> PipSetup:
    """What `pip config list` printed, as one file. A path in it that this machine has is a folder to show or a file to copy."""
    sections: dict[str, dict[str, str]] = {}
    for line in config.splitlines():
        name, equals, quoted = line.partition("=")
        if equals and "." in name:
            section, _, key = name.strip().rpartition(".")
            sections.setdefault("global" if section == ":env:" else section, {})[key] = str(ast.literal_eval(quoted))
    words = [word for values in sections.values() for value in values.values() for word in value.split()]
    paths = dict.fromkeys(path for word in words if os.path.isabs(path := word.removeprefix("file://")) and os.path.exists(path))
    text = "".join(
        f"[{section}]\n" + "".join(f"{key} = {_folded(value)}\n" for key, value in values.items())
        for section, values in sections.items())
    # A folder below another one that is shown already is shown with it.
    folders = [path for path in paths if os.path.isdir(path) and not any(path.startswith(f"{other}/") for other in paths)]
    shown = [os.path.dirname(path) if os.path.basename(path) == "simple" else path for path in folders]  # its files lie beside it
    return PipSetup(text, tuple(dict.fromkeys(shown)), tuple(path for path in paths if os.path.isfile(path)))


def run_inside(root: Path, command: Sequence[str], folders: Iterable[str] = ()) -> int:
    """The command's exit status. Its input, output and terminal are ours. However this ends, nothing of it is left."""
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or name in ("TERM", "CI")}
    environment = {
        **kept, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
        "CLOISON_TEST_TEMPLATE": os.environ.get("CLOISON_TEST_TEMPLATE", "debian-12"),      # elsewhere the newer one is tested
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "BARE_BINDS": "\n".join(folders),
    }
    inside = f'cd "/{CHECKOUT}"; "$@"; status=$?; exit $status'    # the shell stays: it is pid 1 and reaps
    argv = [*contained(), "sh", str(HERE / "enter.sh"), str(root), "/bin/sh", "-c", inside, "sh", *command]
    process = subprocess.Popen(argv, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(GRACE)       # the terminal has told the command too
        raise
    finally:
        process.kill()                # with it its namespaces' first process, and so all of them
        process.wait()


def _make_root(root: Path) -> None:
    """In a folder beside, then renamed: a root that exists is whole."""
    unfinished = root.with_name(root.name + ".unfinished")
    _remove(unfinished)
    _say(f"making a Debian 13 at {root} (once)")
    _run("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={BASE}", SUITE, str(unfinished), *apt_lines(_own_suite()))
    _remove(root)
    unfinished.rename(root)


def _set_up(root: Path) -> tuple[str, ...]:
    """apt, pip and name resolution as on this machine. Returns the folders to show."""
    pip = pip_setup(_output(sys.executable, "-m", "pip", "config", "list"))
    wanted = [line for line in _output("apt-config", "dump").splitlines() if re.match(r"Acquire::(https?::Proxy|Check-)", line)]
    copied = {name: Path(name).read_bytes() for name in (*pip.files, "/etc/resolv.conf", "/etc/hosts") if os.path.exists(name)}
    texts = {
        "/etc/apt/sources.list": "\n".join(apt_lines(_own_suite())) + "\n",
        "/etc/apt/apt.conf.d/90host": "\n".join(wanted) + "\n",
        "/etc/pip.conf": pip.text,
    }
    for name, data in {**copied, **{name: text.encode() for name, text in texts.items()}}.items():
        _put(root, name, data)
    return pip.folders


def _put(root: Path, name: str, data: bytes) -> None:
    _run("sh", "-c", 'mkdir -p "${1%/*}" && rm -f "$1" && cat > "$1"', "sh", f"{root}{name}", data=data)


def _lay_checkout(root: Path) -> None:
    """The tracked files of HEAD, and nothing else but the tools that a former run installed."""
    head = _output("git", "-C", str(PROJECT), "log", "-1", "--format=%h %s").strip()
    changed = _output("git", "-C", str(PROJECT), "status", "--porcelain").strip()
    _say(f"laying a clean checkout of {head}" + (" (what is not committed is not in it)" if changed else ""))
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", "HEAD"], check=True, capture_output=True).stdout
    clean = 'mkdir -p "$1" && find "$1" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && tar -x -C "$1"'
    _run("sh", "-c", clean, "sh", str(root / CHECKOUT), data=archive)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One run at a time in a root."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.with_name(root.name + ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another run in the same Debian")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*argv: str, data: bytes = b"") -> None:
    """As root of a namespace, where the root's files are ours to change; its output is shown."""
    subprocess.run([*contained(), *argv], input=data, check=True)


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout if shutil.which(argv[0]) else ""


def _remove(folder: Path) -> None:
    if folder.exists():
        _run("rm", "-rf", "--one-file-system", str(folder))


def _own_suite() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text().splitlines():
            if line.startswith("VERSION_CODENAME="):
                return line.partition("=")[2].strip('"')
    return ""


def _folded(value: str) -> str:
    """A value of several lines goes on with an indent."""
    return value.strip().replace("\n", "\n    ")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"debian13: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
