"""What the web pages of a worker and of a bridge have in common: their port, and who may ask for a reload."""

from __future__ import annotations

import hmac
import ipaddress
import socket

from streamproc.errors import PortTaken


def free(name: str, host: str, port: int) -> None:
    """Raise `PortTaken` where the web pages cannot be had at a port; 0 stands for none."""
    if not port:
        return
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as e:
        raise PortTaken(
            f"{name}: {host}:{port} cannot be had ({e.strerror or e}); name another port, or 0 for no web pages"
        ) from None


def refusal(peer: str | None, authorization: str | None, token: str | None) -> str:
    """Return why somebody may not have the config read again, and what to do; "" where he may.

    peer: the address the request came from. Who is on this machine may; from elsewhere it takes the token, where there
    is one, as `Authorization: Bearer ...`.
    """
    if token:
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return ""
    if peer is not None and _is_loopback(peer):
        return ""
    if token:
        return "from another machine a reload takes `Authorization: Bearer` and the token of `worker.reload_token`"
    return (
        "a reload is asked for from this machine only: send SIGHUP, change the file, which is noticed by itself, "
        "or set `worker.reload_token` and send it as `Authorization: Bearer`"
    )


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
