"""The qube's end of qrexec: the agent, the fork server, and the client of programs in the qube (reference/qrexec.md 4, 9)."""
