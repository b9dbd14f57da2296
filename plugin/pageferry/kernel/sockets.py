"""Opens sockets that listen for TCP connections. What is said over them is left to others."""

from __future__ import annotations

import socket

BACKLOG = 16

_IP_FREEBIND = 15  # linux/in.h; for version 6, too (net/ipv6/ipv6_sockglue.c)


def listening(host: str, port: int, *, freely: bool = False) -> socket.socket:
    """Return a socket that listens, without waiting, at an IP address. Raises OSError.

    `freely`: also at an address that the host has not got yet (ip(7), IP_FREEBIND): who starts before the network does
    not have to know when it is there.
    """
    made = socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET,
        socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
    )
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if freely:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
