"""Programs behind the host's own qrexec services (`host-rpc/`): each is `main(argv)`; the caller is in QREXEC_REMOTE_DOMAIN.

What comes on standard input is a qube's: bounded, and untrusted until checked. Nothing here is told to a qube but its answer.
"""
