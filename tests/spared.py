"""Words before a program that changes what its process sees of the machine, for tests that root runs.

Should the code under test fail to leave the host's namespaces, it would do to the whole machine what it means to do to itself: now
it does it to these.
"""
from __future__ import annotations

import os

SPARED = ["/usr/bin/unshare", "--mount", "--uts", "--propagation", "private"] if os.geteuid() == 0 else []
