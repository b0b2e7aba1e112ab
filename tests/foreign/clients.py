"""A tool of Qubes OS's client and the one of ours with the same name, run the same way against the same qubesd."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Seconds after which a tool counts as hung. Where a qube boots, or a template is built, it may take long.
LIMIT, BOOT_LIMIT = 60.0, 900.0
_SLOW = ("build", "qvm-start", "qvm-run", "qvm-shutdown", "-c", "down")
_OURS = "import sys; from cloison.cli.{} import main; sys.exit(main())"

Result = subprocess.CompletedProcess[str]


class Both:
    """The same tool twice: theirs through `cloison dom0`, and ours."""

    def __init__(self, root: Path, bin_folder: Path) -> None:
        self.root, self.bin = root, bin_folder

    def _run(self, module: str, words: tuple[str, ...], text: str) -> Result:
        environment = {**os.environ, "CLOISON_ROOT": str(self.root), "DISPLAY": "", "COLUMNS": "80"}
        argv = [sys.executable, "-c", _OURS.format(module.replace("-", "_")), *words]
        named = {module, *map(os.path.basename, words)}
        limit = BOOT_LIMIT if named.intersection(_SLOW) else LIMIT
        return subprocess.run(argv, env=environment, input=text, capture_output=True, text=True, check=False, timeout=limit)

    def ours(self, *words: str, text: str = "") -> Result:
        return self._run(words[0], words[1:], text)

    def cloison(self, *words: str, text: str = "") -> Result:
        return self._run("main", words, text)

    def theirs(self, *words: str, text: str = "") -> Result:
        return self.cloison("dom0", "--", str(self.bin / words[0]), *words[1:], text=text)

    def python(self, code: str) -> Result:
        """A program that uses their library."""
        return self.cloison("dom0", "--", str(self.bin / "python"), "-c", code)
