"""qrexec on the host: the daemon that a warden runs for its qube."""
