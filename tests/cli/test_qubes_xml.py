"""cloison qubes-xml against the real qubesd on fake parts: what it prints, and that a file is never overwritten."""
from __future__ import annotations

from pathlib import Path

import pytest
from real_qubesd import real_qubesd

from cloison.cli import main as cloison


def test_export_is_a_qubes_xml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    with real_qubesd(tmp_path):
        assert cloison.main(["qubes-xml", "export"]) == 0
        printed = capfdbinary.readouterr().out
        assert printed.startswith(b"<qubes>\n")
        assert b'<property name="name">work</property>' in printed
        target = tmp_path / "out.xml"
        assert cloison.main(["qubes-xml", "export", str(target)]) == 0
        assert target.read_bytes() == printed
        assert cloison.main(["qubes-xml", "export", str(target)]) == 1
        assert cloison.main(["qubes-xml", "import", str(target)]) == 1
        assert b"without qubes" in capfdbinary.readouterr().err
