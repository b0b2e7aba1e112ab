"""The Admin API and qrexec for the host's tools: synchronous, and light to import, since a tool's start is waited for."""
