"""The agent's package, really built and looked at with dpkg-deb; what is in it runs."""
from __future__ import annotations

import hashlib
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cloison import __version__
from cloison.templates import agent_package
from cloison.templates.contain import Tools


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    return Path(agent_package.build(Tools(str(folder / "log")), str(folder)))


@pytest.fixture(scope="module")
def unpacked(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", str(package(repository)), str(folder)], check=True)
    return folder


def package(repository: Path) -> Path:
    return repository / f"cloison-agent_{__version__}_all.deb"


def field(repository: Path, name: str) -> str:
    command = ["dpkg-deb", "--field", str(package(repository)), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_control_fields(repository: Path) -> None:
    assert field(repository, "Package") == "cloison-agent"
    assert field(repository, "Version") == __version__
    assert {"python3", "systemd-sysv", "udev"} <= set(field(repository, "Depends").split(", "))


def test_index_describes_the_package(repository: Path) -> None:
    lines = (repository / "Packages").read_text().splitlines()
    fields = dict(line.split(": ", 1) for line in lines if not line.startswith(" "))
    data = package(repository).read_bytes()
    assert (repository / fields["Filename"]).resolve() == package(repository).resolve()
    assert int(fields["Size"]) == len(data)
    assert fields["SHA256"] == hashlib.sha256(data).hexdigest()


def test_everything_is_roots(repository: Path) -> None:
    command = ["dpkg-deb", "--contents", str(package(repository))]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}


def test_only_what_the_guest_needs_ships(unpacked: Path) -> None:
    root = unpacked / "usr/lib/cloison/cloison"
    assert {path.name for path in root.iterdir()} == set(agent_package.SHIPPED)
    assert not {"cli", "daemon", "admin", "client", "model", "templates"} & set(agent_package.SHIPPED)
    assert {path.suffix for path in root.rglob("*") if path.is_file()} == {".py"}
    assert not (root / "guest/files").exists()


def test_shipped_code_is_complete(unpacked: Path) -> None:
    """Every module imports with nothing of ours but what ships."""
    root = unpacked / "usr/lib/cloison"
    modules = [".".join(path.relative_to(root).with_suffix("").parts) for path in (root / "cloison").rglob("*.py")]
    script = "import importlib, sys; sys.path.insert(0, sys.argv[1]); [importlib.import_module(m) for m in sys.argv[2:]]"
    names = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    subprocess.run([sys.executable, "-E", "-s", "-S", "-c", script, str(root), *names], check=True, cwd="/")


def test_what_programs_and_services_import_ships(unpacked: Path) -> None:
    root = unpacked / "usr/lib/cloison"
    scripts = [path for path in unpacked.rglob("*") if path.is_file() and root / "cloison" not in path.parents]
    found = re.compile(rb"^(?:from|import) (cloison[a-z_.]+)", re.MULTILINE)
    wanted = {name.decode() for path in scripts for name in found.findall(path.read_bytes())}
    assert "cloison.qrexec.vmexec" in wanted
    assert not [name for name in wanted if not list(root.glob(name.replace(".", "/") + "*"))]


def test_modes(unpacked: Path) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((unpacked / name).stat().st_mode)
    assert mode("DEBIAN/postinst") == 0o755
    assert mode("etc/sudoers.d/cloison") == 0o440
    assert mode("usr/lib/cloison/agent.py") == 0o644
    for service in (unpacked / "etc/qubes-rpc").glob("*"):
        assert service.is_symlink() or service.is_dir() or stat.S_IMODE(service.stat().st_mode) == 0o755


def test_links_lead_to_what_ships_or_to_a_port(unpacked: Path) -> None:
    for name, target in agent_package.LINKS.items():
        link = unpacked / name
        assert str(link.readlink()) == target
        assert target.startswith("/dev/tcp/127.0.0.1") or link.is_file()


def test_configuration_files_are_listed(unpacked: Path) -> None:
    listed = (unpacked / "DEBIAN/conffiles").read_text().split()
    assert "/etc/sudoers.d/cloison" in listed
    assert all((unpacked / name.lstrip("/")).is_file() for name in listed)


@pytest.mark.parametrize("script", ["postinst", "prerm"])
def test_maintainer_scripts_parse(unpacked: Path, script: str) -> None:
    subprocess.run(["sh", "-n", str(unpacked / "DEBIAN" / script)], check=True)


def test_unit_starts_a_file_that_ships(unpacked: Path) -> None:
    unit = (unpacked / "usr/lib/systemd/system/cloison-agent.service").read_text()
    match = re.search(r"^ExecStart=/usr/bin/python3 -E -s (\S+)$", unit, re.MULTILINE)
    assert match
    assert (unpacked / match[1].lstrip("/")).is_file()
    rule = (unpacked / "usr/lib/udev/rules.d/60-cloison-agent.rules").read_text()
    assert "cloison-agent.service" in rule
    assert "org.cloison.mux" in rule


def test_the_digest_tells_every_change_of_what_ships_and_no_other(tmp_path: Path) -> None:
    source = tmp_path / "cloison"
    shutil.copytree(agent_package.SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    first = agent_package.digest(str(source))
    assert first == agent_package.digest() and re.fullmatch("[0-9a-f]{32}", first)
    for name in ("cli/tool.py", "qrexec/host/daemon.py", "guest/notes.txt", "guest/__pycache__/agent.cpython-311.pyc"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("something else")
    assert agent_package.digest(str(source)) == first
    seen = {first}
    for name in ("values.py", "guest/agent.py", "guest/services/qubes.VMExec", "guest/files/DEBIAN/postinst", "wire/mux.py"):
        with (source / name).open("a") as file:
            file.write("# changed")
        seen.add(agent_package.digest(str(source)))
    (source / "guest/agent.py").rename(source / "guest/renamed.py")
    seen.add(agent_package.digest(str(source)))
    assert len(seen) == 7


def test_the_digest_is_of_what_ships(unpacked: Path) -> None:
    shipped = {target for target, _ in agent_package._shipped(agent_package.SOURCE)}
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink() and path.suffix != ".pyc"]
    there = {str(path.relative_to(unpacked)) for path in files}
    assert there == shipped | {"DEBIAN/control", "DEBIAN/conffiles"}
