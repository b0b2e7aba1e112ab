"""cloison qubes-xml against the real qubesd on fake parts: what it prints, and that a file is never overwritten."""
from __future__ import annotations

from pathlib import Path

import pytest
from real_qubesd import real_qubesd

from cloison.cli import main as cloison
from cloison.client.connection import Connection


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


def test_rules_and_notes_lie_beside_a_file_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    with real_qubesd(tmp_path):
        connection = Connection()
        connection.call("work", "admin.vm.firewall.Set", payload=b"action=drop")
        connection.call("work", "admin.vm.notes.Set", payload="hé".encode())
        out = tmp_path / "out"
        out.mkdir()
        assert cloison.main(["qubes-xml", "export", str(out / "qubes.xml")]) == 0
        beside = out / "appvms" / "work"
        assert {path for path in out.rglob("*.*") if path.is_file()} == {
            beside / "firewall.xml", beside / "notes.txt", out / "qubes.xml"}
        assert b'<property name="action">drop</property>' in (beside / "firewall.xml").read_bytes()
        assert (beside / "notes.txt").read_text() == "hé"
        (out / "qubes.xml").unlink()
        assert cloison.main(["qubes-xml", "export", str(out / "qubes.xml")]) == 1, "nothing there is overwritten"
