"""The service of the host that benchmarks in real qubes call: it does nothing."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cloison.runtime.paths import Paths


@contextlib.contextmanager
def true_service(paths: Paths, policy: str) -> Iterator[None]:
    """`bench.True` is there, and so is that policy, before the user's own."""
    rules, service = Path(paths.run, "policy.d", "05-bench.policy"), Path(paths.run, "qubes-rpc", "bench.True")
    with contextlib.ExitStack() as stack:
        rules.write_text(policy, encoding="ascii")
        stack.callback(rules.unlink)
        service.symlink_to("/usr/bin/true")
        stack.callback(service.unlink)
        yield
