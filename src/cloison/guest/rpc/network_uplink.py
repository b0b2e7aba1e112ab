"""qubes.WaitForNetworkUplink: ends when a network interface is up, as the kernel tells, or when it took too long."""
from __future__ import annotations

import os
import select
import socket
import sys
import time

WAIT = 3.0                               # seconds
NOT_UP = 3                               # exit status
_INTERFACES = "/sys/class/net"
_LINKS = 1                               # RTMGRP_LINK: news of interfaces


def main(interfaces: str = _INTERFACES, wait: float = WAIT) -> int:
    """The service: 0 when one is up or there is none to wait for (what has no device, as `lo`, doesn't count), else NOT_UP."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as news:
        news.bind((0, _LINKS))           # before the first look: what changes after that is told
        end = time.monotonic() + wait
        while not _is_up(interfaces):
            if not _told(news, end - time.monotonic()):
                print("qubes.WaitForNetworkUplink: no network interface is up", file=sys.stderr)
                return NOT_UP
    return 0


def _is_up(interfaces: str) -> bool:
    states = [_state(os.path.join(interfaces, name)) for name in os.listdir(interfaces)
              if os.path.exists(os.path.join(interfaces, name, "device"))]
    return not states or "up" in states


def _state(interface: str) -> str:
    try:
        with open(os.path.join(interface, "operstate"), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:            # it has just gone
        return ""


def _told(news: socket.socket, seconds: float) -> bool:
    """Whether there was news within that time. What it says is read from the interfaces themselves."""
    if not select.select([news], [], [], max(0.0, seconds))[0]:
        return False
    try:
        news.recv(1 << 16)
    except OSError:                      # more news than the kernel keeps: look all the same
        pass
    return True
