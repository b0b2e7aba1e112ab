"""Cloison: the user's life in qubes, each a virtual machine with a colour."""

__version__ = "0.1.0"
