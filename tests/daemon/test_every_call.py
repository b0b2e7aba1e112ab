"""Every call on every class of qube, with arguments it may not expect: an answer or a refusal, never a failure of ours."""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.admin.methods import SOCKETS
from cloison.daemon.app import App
from cloison.daemon.fake import ask, fake_app

STREAMS = ("admin.Events", "admin.vm.Stats", "cloison.Disposable")
QUBES = (("TemplateVM", "", "tpl"), ("AppVM", "tpl", "work"), ("AppVM", "tpl", "busy"), ("StandaloneVM", "", "alone"),
         ("RemoteVM", "", "far"))
ARGUMENTS = ("", "x", "private", "kernel", "label", "dom0+sda", "work+_+_", "varlibqubes", "force", "..", "uuid:" + "0" * 36)
PAYLOADS = ("", "1", "x", "name=q label=red", "-1", "ok", "action=accept")


async def restore(app: App) -> None:
    """Whatever a call has removed or stopped is there again."""
    for klass, template, name in QUBES:
        if name not in app.system.qubes:
            await ask(app, f"admin.vm.Create.{klass}", "dom0", template, f"name={name} label=red")
    if app.system.qube("busy").is_halted:
        await ask(app, "admin.vm.Start", "busy")


@pytest.mark.parametrize("socket", SOCKETS)
def test_every_call_answers(tmp_path: Path, socket: str) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for name in (name for name in SOCKETS[socket] if name not in STREAMS):
            await restore(app)
            for dest in ("dom0", *(name for _, _, name in QUBES)):
                for argument in ARGUMENTS:
                    for payload in PAYLOADS:
                        async with asyncio.timeout(PATIENCE):
                            answer = await ask(app, name, dest, argument, payload, socket=socket)
                        assert "\n" not in answer.content or not answer.failure
            assert app.system.journal.rows == [] and app.system.journal.events == [], name
        await app.preloads.close()
        await app.live.close()
        await app.machines.close()
        app.parts.store.close()

    asyncio.run(run())
