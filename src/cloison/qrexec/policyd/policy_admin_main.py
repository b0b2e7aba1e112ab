"""qubes-policy-admin: the program behind all policy.* services; the name it is called by says which one.

Exit status 0 and the output, 1 and `CLASS message` on standard error, 2 for a fault of ours. Each call is logged.
"""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from cloison.errors import PeerError
from cloison.policy.parse import Root
from cloison.qrexec.call_log import CallLog
from cloison.qrexec.policyd.policy_admin import MAX_PAYLOAD, Caller, PolicyAdmin, PolicyAdminException
from cloison.qrexec.policyd.policy_files import Folders, folders, make_folders
from cloison.runtime.paths import Paths
from cloison.runtime.read_all import read_all

REFUSED, FAULT = 1, 2
PATIENCE = 60.0             # seconds for the whole input: a qube that sends none must not keep programs of the host


def policy_folders(paths: Paths, environ: Mapping[str, str]) -> Folders:
    """`QREXEC_POLICY_DIR` stands for the user's folder, and then nothing is shipped."""
    where = folders(paths)
    own = environ.get("QREXEC_POLICY_DIR")
    return where | {Root.MAIN: (own,)} if own else where


def _full_name(environ: Mapping[str, str], arguments: list[str]) -> tuple[str, str]:
    """Service and argument: as qrexec tells them, or as a person types them."""
    full = environ.get("QREXEC_SERVICE_FULL_NAME")
    if full:
        service, _, argument = full.partition("+")
        return service, argument
    return os.path.basename(arguments[0]), arguments[1] if len(arguments) > 1 else ""


def main() -> int:
    environ = os.environ
    service, argument = _full_name(environ, sys.argv)
    caller = Caller(environ.get("QREXEC_REMOTE_DOMAIN", "dom0"), environ.get("QREXEC_REQUESTED_TARGET", ""))
    paths = Paths.from_environment()
    paths.ensure()
    call_log = CallLog(environ.get("QREXEC_POLICY_ADMIN_LOG") or os.path.join(paths.log, "policy-admin.log"))
    try:
        if not environ.get("QREXEC_POLICY_DIR"):
            make_folders(folders(paths))
        payload = read_all(0, MAX_PAYLOAD, PATIENCE)
        output = PolicyAdmin(policy_folders(paths, environ), caller).call(service, argument, payload)
    except PeerError as error:
        call_log.write(source=caller.source, service=f"{service}+{argument}", result="no input", why=str(error))
        print(f"PolicyAdminException {error}", file=sys.stderr)
        return REFUSED
    except PolicyAdminException as error:
        call_log.write(source=caller.source, service=f"{service}+{argument}", result=type(error).__name__, why=str(error))
        print(f"{type(error).__name__} {error}", file=sys.stderr)
        return REFUSED
    except Exception:
        logging.exception("the call failed")
        call_log.write(source=caller.source, service=f"{service}+{argument}", result="fault")
        return FAULT
    finally:
        call_log.close()
    call_log.write(source=caller.source, service=f"{service}+{argument}", result="done")
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
