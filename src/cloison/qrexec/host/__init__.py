"""The host's end of qrexec: a daemon a qube, the client, and the services of the host (reference/qrexec.md 4-8, 15.3)."""
