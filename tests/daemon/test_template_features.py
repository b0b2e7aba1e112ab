"""What a template's maker says of it is taken as the template's own word: checked, and in place of what was said before."""
from __future__ import annotations

import asyncio
from pathlib import Path

from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, fake_app

CALL = "internal.cloison.FeaturesRequest"


async def say(app: App, text: str) -> Answer:
    return await ask(app, CALL, "tpl", payload=text, socket="qubesd.internal.sock")


def test_a_new_build_takes_the_place_of_the_old_and_leaves_what_the_person_decided(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        heard: list[str] = []
        app.listen(app.system.dom0, "tpl", lambda _subject, name, _pairs: heard.append(name))
        first = "qrexec=1\nos=Linux\nos-version=12\nsupported-rpc.a.B=1\nsupported-rpc.c.D=1\nos-eol=\n"
        assert not (await say(app, first)).failure
        features = app.system.qube("tpl").features
        assert dict(features) == {
            "qrexec": "1", "os": "Linux", "os-version": "12", "supported-rpc.a.B": "1", "supported-rpc.c.D": "1"}
        assert "template-postinstall" in heard and "features-request" in heard
        await ask(app, "admin.vm.feature.Set", "tpl", "qrexec", "")
        assert not (await say(app, "qrexec=1\nos-version=13\nsupported-rpc.c.D=1\n")).failure
        assert dict(features) == {"qrexec": "", "os": "Linux", "os-version": "13", "supported-rpc.c.D": "1"}
        for bad in ("os=$(id)\n", "os=a\x1b\n", "x" * 300 + "=1\n", "\n".join(f"supported-rpc.x{n}=1" for n in range(2000))):
            assert (await say(app, bad)).failure == "ProtocolError", bad[:20]
        assert dict(features) == {"qrexec": "", "os": "Linux", "os-version": "13", "supported-rpc.c.D": "1"}
        assert (await ask(app, CALL, payload="os=Linux", socket="qubesd.internal.sock")).failure == "ProtocolError"
        await app.live.close()
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()

    asyncio.run(scenario())
