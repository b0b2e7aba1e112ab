"""Qubes OS's own programs for the policy, and its library that the global configuration uses, against our services of dom0.

`CLOISON_FOREIGN_QREXEC` names the folder of a checkout of its qrexec package (the one that holds `qrexec`).
"""
from __future__ import annotations

import os

import pytest
from clients import Both

QREXEC = "CLOISON_FOREIGN_QREXEC"
pytestmark = pytest.mark.skipif(not os.environ.get(QREXEC), reason=f"{QREXEC} is not set")
RULES = "test.Add * work mail allow\n"


def tool(both: Both, module: str, *words: str, text: str = "", editor: str = "true") -> tuple[int, str, str]:
    code = f"import sys; from qrexec.tools.{module} import main; sys.exit(main())"
    done = both.cloison("dom0", "--", "env", f"EDITOR={editor}", str(both.bin / "python"), "-c", code, *words, text=text)
    return done.returncode, done.stdout, done.stderr


def test_qubes_policy(both: Both) -> None:
    assert "90-default\n" in tool(both, "qubes_policy", "-l")[1]
    assert "admin-local-rwx\n" in tool(both, "qubes_policy", "-l", "include/")[1]
    assert tool(both, "qubes_policy", "-g", "30-user")[0] == 1
    assert tool(both, "qubes_policy", "-r", "30-user", text=RULES) == (0, "", "")
    assert tool(both, "qubes_policy", "-g", "30-user") == (0, RULES, "")
    status, _, told = tool(both, "qubes_policy", "-r", "30-user", text="wrong\n")
    assert status == 1 and "30-user.policy:1" in told
    assert both.ours("qubes-policy", "-g", "30-user").stdout == RULES
    assert tool(both, "qubes_policy", "-d", "30-user") == (0, "", "")


def test_the_policy_editor(both: Both) -> None:
    assert tool(both, "qubes_policy", "-r", "30-user", text=RULES)[0] == 0
    assert tool(both, "qubes_policy_editor", "30-user", editor="sed -i s/allow/deny/")[0] == 0
    assert tool(both, "qubes_policy", "-g", "30-user")[1] == RULES.replace("allow", "deny")


def test_their_library(both: Both) -> None:
    done = both.python("""
from qrexec.client import call
from qrexec.policy.admin_client import PolicyClient
from qrexec.policy.admin import PolicyAdminFileNotFoundException, PolicyAdminTokenException
client = PolicyClient()
print(client.policy_get_files("qubes.Filecopy"))
try:
    client.policy_get("50-none")
except PolicyAdminFileNotFoundException:
    print("not there")
client.policy_replace("50-config", "test.B * work mail deny\\n", "new")
content, token = client.policy_get("50-config")
client.policy_replace("50-config", content, token)
try:
    client.policy_replace("50-config", "", "sha256:" + "0" * 64)
except PolicyAdminTokenException:
    print("changed meanwhile")
client.policy_remove("50-config", token)
print(len([line.split("\\0")[2] for line in call("dom0", "qubes.repos.List").split("\\n")]) > 0)
""")
    assert (done.stderr, done.stdout) == ("", "['90-default']\nnot there\nchanged meanwhile\nTrue\n")
