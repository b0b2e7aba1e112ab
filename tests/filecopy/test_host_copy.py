"""qvm-copy-to-vm and qvm-move-to-vm of the host, as far as they get without a qube; tests/boot/test_copy.py has the rest."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE

Result = subprocess.CompletedProcess[bytes]


def run(tool: str, *arguments: str, cwd: Path) -> Result:
    code = f"import sys; from cloison.cli.{tool} import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, check=False, timeout=PATIENCE,
                          env={**os.environ, "CLOISON_ROOT": str(cwd / "root"), "PYTHONPATH": ""})


@pytest.mark.parametrize("tool", ["qvm_copy_to_vm", "qvm_move_to_vm"])
def test_what_can_not_be_copied_is_told_before_anything_is_asked(tmp_path: Path, tool: str) -> None:
    (tmp_path / "link").symlink_to("missing")
    for name, said in (("missing", b"No such file"), ("link", b"--ignore-symlinks")):
        result = run(tool, "work", name, cwd=tmp_path)
        assert (result.returncode, said in result.stderr, result.stdout) == (1, True, b"")


@pytest.mark.parametrize("tool", ["qvm_copy_to_vm", "qvm_move_to_vm"])
def test_without_qubesd_nothing_is_moved(tmp_path: Path, tool: str) -> None:
    (tmp_path / "f").touch()
    result = run(tool, "work", "f", cwd=tmp_path)
    assert (result.returncode, b"qubesd is not running" in result.stderr) == (1, True)
    assert (tmp_path / "f").exists()


@pytest.mark.parametrize("arguments", [(), ("work",), ("--odd", "work", "f"), ("../x", "f")])
def test_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "f").touch()
    assert run("qvm_copy_to_vm", *arguments, cwd=tmp_path).returncode in (1, 2)
