"""Runs a piece of Python as root of a throw-away system: own mounts and names, an empty /etc, /home, /rw, /run, and the guest's
code. Nothing of the host can be changed from it, so the agent's parts run there as they are."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[2] / "src"
OWN = ("etc", "home", "rw", "run", "tmp", "var", "proc", "dev", "sys", "mnt")
PRELUDE = """
import json, os, stat, sys
sys.path.insert(0, "/mnt/src")
from cloison.guest import identity, libc, private_volume, volumes
from cloison.guest.volumes import *
def put(path, text="", mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)
def get(path):
    with open(path) as file:
        return file.read()
def tmpfs(path):
    os.makedirs(path, exist_ok=True)
    libc.mount("tmpfs", path, "tmpfs")
"""


def interpreter() -> str:
    """The distribution's, as in a guest, if there is one."""
    return os.path.realpath("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)


def inside(program: str) -> Any:
    """The value of `result` after the program has run. What it raises fails the test."""
    box = ["bwrap", "--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "ALL"]
    box += ["--die-with-parent", "--clearenv"]
    for name in sorted(set(os.listdir("/")) - set(OWN)):
        path = "/" + name
        box += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for name in ("etc", "home", "rw", "run", "tmp", "var"):
        box += ["--dir", "/" + name]
    box += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", str(SOURCES), "/mnt/src"]
    done = subprocess.run([*box, interpreter(), "-I", "-B", "-c", f"{PRELUDE}\n{program}\nprint(json.dumps(result))"],
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
