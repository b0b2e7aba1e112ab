"""All of it as a user without any privilege. As root, such a user is made for the test and removed again."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import qemu.qmp
from tests.boot import place as place_module
from tests.boot.place import SOURCE, TEMPLATE, Place, copy_parts

import cloison

pytestmark = [pytest.mark.boot, pytest.mark.slow]

SCRIPT = """
import sys
from pathlib import Path
from place import DVM, Place, furnish
from cloison.templates.build import Built
place = Place(Path(sys.argv[1]))
try:
    place.up()
    furnish(place, Built(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    assert place.ok(["qvm-run", "-p", "--dispvm", "--", "id", "-un"]) == b"user\\n"
    assert place.ok(["qvm-run", "-p", "--dispvm", "--user", "root", "--", "cat"], b"x" * 100000) == b"x" * 100000
    place.create("mine")
    place.sh("mine", "echo kept > ~/kept")
    place.halt("mine")
    assert place.sh("mine", "cat ~/kept") == b"kept\\n"
    place.down()
    place.up("warden:spawned")       # its sandbox, still being set up, hides its files from other processes of this user
    for _ in range(8):
        assert place.run(["qvm-run", "-p", "--dispvm", "--", "true"]).returncode == 255
finally:
    place.ok(["cloison", "down"])
"""


@pytest.fixture
def user() -> Iterator[str]:
    """Name of an ordinary user; empty for the one who runs the tests, if that is one."""
    if os.geteuid() != 0:
        yield ""
        return
    name = f"cloison-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True, capture_output=True)
    try:
        yield name
    finally:        # refused while any process of that user is left
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user reaches, with the programs; the interpreter's own may lie where others can't reach."""
    path = Path(tempfile.mkdtemp(prefix="cloison-user-"))
    path.chmod(0o755)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(os.path.dirname(cloison.__file__), path / "src/cloison", ignore=ignore)
    shutil.copytree(os.path.dirname(qemu.qmp.__file__), path / "src/qemu/qmp", ignore=ignore)
    shutil.copy(place_module.__file__, path / "src/place.py")
    yield path
    shutil.rmtree(path)


def test_an_ordinary_user_has_all_of_it(cloison: Place, user: str, folder: Path) -> None:
    root = folder / "root"
    built = copy_parts(Place(root), cloison.root)
    words = [sys.executable, "-c", SCRIPT, str(root), built.image, built.kernel, str(built.size)]
    if user:
        subprocess.run(["chown", "--recursive", f"{user}:", str(root)], check=True)
        words = ["runuser", "-u", user, "--", "/usr/bin/python3", *words[1:]]
    # Whoever is made for this can't look at the place that templates are copied from.
    environment = {**os.environ, SOURCE: "", "CLOISON_TEST_TEMPLATE": TEMPLATE, "HOME": str(root),
                   "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    left = Place(root).processes()
    place_module.await_ends(left)
    assert Place(root).mounts() == []
