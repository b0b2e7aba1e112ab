"""What a template's maker says of it is taken as the template's own word: checked, and in place of what was said before."""
from __future__ import annotations

import asyncio
from pathlib import Path

from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, fake_app
from cloison.model import requests
from cloison.templates import agent_package

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


def test_an_agent_of_another_version_is_told_of_by_template_and_by_what_runs_from_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = await fake_app(str(tmp_path))
        for name in ("tpl", "other"):
            await ask(app, "admin.vm.Create.TemplateVM", payload=f"name={name} label=black")
        for name, template in (("work", "tpl"), ("idle", "tpl"), ("mail", "other")):
            await ask(app, "admin.vm.Create.AppVM", "dom0", template, payload=f"name={name} label=red")
        for name in ("work", "mail"):
            assert not (await ask(app, "admin.vm.Start", name)).failure
        app.agents.current = "c" * 32
        said = "os=Linux\nos-distribution=debian\nqubes-agent-version=4.4\n"
        sentence = "template tpl has the agent of an older Cloison; to renew it: cloison template build tpl"

        async def told() -> dict[str, str]:
            return dict((await app.status())["old_agents"])

        assert await told() == {}, "other systems, and such as nobody has built yet"
        await say(app, said)                            # built before there was a digest
        assert await told() == {"tpl": sentence, "work": sentence}
        await say(app, said + f"cloison-agent={'b' * 32}\n")
        assert await told() == {"tpl": sentence, "work": sentence}
        app.agents.current = ""                         # what ships can't be read: nothing is known, nothing is said
        assert await told() == {}
        app.agents.current = "c" * 32
        await say(app, said + f"cloison-agent={'c' * 32}\n")
        assert await told() == {}
        for name, value in (("os-distribution", "fedora"), ("cloison-agent", "x")):
            await ask(app, "admin.vm.feature.Set", "tpl", name, value)
        assert await told() == {}, "nothing of ours could renew it"
        app.agents.current = None                       # taken when it is first needed
        await say(app, said + f"cloison-agent={agent_package.digest()}\n")
        assert await told() == {} and app.agents.current == agent_package.digest()
        await app.live.close()
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()

    asyncio.run(scenario())


def test_a_qube_s_own_word_for_its_agent_is_not_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.TemplateVM", payload="name=tpl label=black")
        qube = app.system.qube("tpl")
        with app.transaction():
            requests.apply(qube, requests.check({"cloison-agent": b"c" * 32, "os": b"Linux"}))
        assert dict(qube.features) == {"os": "Linux"}
        app.parts.store.close()

    asyncio.run(scenario())
