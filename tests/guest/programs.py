"""A qube's programs and services as their scripts start them, with programs of the test's own on PATH."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.patience import PATIENCE

import cloison

SOURCE = str(Path(cloison.__file__).parents[1])
Result = subprocess.CompletedProcess[bytes]

# Stands in for qrexec-client-vm: what it was called with goes to a file; the service is a program of the test's.
CLIENT = f"""#!{sys.executable}
import os, subprocess, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(repr(sys.argv[1:]) + "\\n")
service = os.environ.get("SERVICE")
if not service:
    print("Request refused", file=sys.stderr)
    sys.exit(126)
sys.exit(subprocess.call([service], stdin=0, stdout=0 if "--use-stdin-socket" in sys.argv else 1))
"""


class Bin:
    """A folder of programs that comes first on PATH; `calls` is what the qrexec client was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self._calls = folder / "calls"
        self._home = folder / "home"
        self._home.mkdir()
        self.add("qrexec-client-vm", CLIENT)

    def add(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def service(self, module: str, call: str = "main", **environment: str) -> str:
        """A program that is a service of ours."""
        lines = "".join(f"os.environ[{key!r}] = {value!r}\n" for key, value in environment.items())
        return self.add("service", f"#!{sys.executable}\nimport os, sys\n{lines}sys.path.insert(0, {SOURCE!r})\n"
                                   f"from {module} import {call}\nsys.exit({call}(sys.argv))\n")

    @property
    def home(self) -> Path:
        return self._home

    def calls(self) -> list[list[str]]:
        return [eval(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []  # noqa: S307 our own

    def noted(self) -> str:
        """What programs of the test's own wrote to the file of calls."""
        return self._calls.read_text()

    def environment(self, **extra: str) -> dict[str, str]:
        return {"PATH": f"{self.folder}:{os.environ['PATH']}", "CALLS": str(self._calls), "HOME": str(self._home),
                "LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": str(self._home), **extra}

    def words(self, module: str, name: str, arguments: Sequence[str], call: str = "main") -> list[str]:
        code = (f"import sys; sys.path.insert(0, {SOURCE!r}); sys.argv[0] = {name!r}; from {module} import {call}; "
                f"sys.exit({call}(sys.argv))")
        return [sys.executable, "-ISEc", code, *arguments]

    def run(self, module: str, name: str, *arguments: str, call: str = "main", data: bytes = b"", cwd: Path | None = None,
            **environment: str) -> Result:
        return subprocess.run(self.words(module, name, arguments, call), input=data, capture_output=True, check=False,
                              timeout=PATIENCE, cwd=cwd or self._home, env=self.environment(**environment))
