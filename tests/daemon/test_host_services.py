"""Services of the host are files, as programs of dom0 look for them; they follow the features, also while no daemon ran."""
from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_app


def test_files_follow_features(tmp_path: Path) -> None:
    folder = tmp_path / "run/qubes-service"

    async def set_feature(app: App, qube: str, name: str, value: str) -> None:
        answer = await ask(app, "admin.vm.feature.Set", qube, name, value)
        assert not answer.failure, answer

    async def first() -> None:
        app = await fake_app(str(tmp_path))
        assert os.listdir(folder) == []
        await ask(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        await set_feature(app, "tpl", "service.x", "1")
        for name, value in (("service.on", "1"), ("service.off", ""), ("on", "1"), ("service.zero", "0"), ("service.gone", "1")):
            await set_feature(app, "dom0", name, value)
        assert sorted(os.listdir(folder)) == ["gone", "on", "zero"], "any text is true"
        assert not (await ask(app, "admin.vm.feature.Remove", "dom0", "service.gone")).failure
        await set_feature(app, "dom0", "service.zero", "")
        assert os.listdir(folder) == ["on"]
        for bad in ("service.", "service...", "service.a/b", "service." + "x" * 49):
            assert (await ask(app, "admin.vm.feature.Set", "dom0", bad, "1")).failure, bad
        assert os.listdir(folder) == ["on"]
        await close_app(app)

    asyncio.run(first())
    (folder / "on").unlink()
    (folder / "stale").touch()

    async def next_daemon() -> None:
        app = await fake_app(str(tmp_path))
        assert os.listdir(folder) == ["on"]
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to("/proc/nowhere")          # whatever is wrong there, the change is made
        await set_feature(app, "dom0", "service.more", "1")
        await close_app(app)

    asyncio.run(next_daemon())
