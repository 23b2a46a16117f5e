"""Keys that servers know us by. They are read from the environment, go over no connection that others can read, and are
never shown.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import BaseHandler, OpenerDirector, ProxyHandler, build_opener

from assay.formats import InputError

ASKED = "ASSAY_INSECURE_KEY"
"""Environment variable: 1 if keys may go over plain http to another machine."""


def key_of_environment(name: str) -> str:
    """The environment variable ``name``, "" if it is not set. Raises InputError if it cannot be sent."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("the key has characters that cannot be sent", where=name, remedy="Set it again")
    return key


def is_local(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says: a loopback address, or ``localhost``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def demand_private(name: str, url: str, *, asked: bool = False) -> None:
    """Raise InputError if the key ``name`` would go to ``url`` as anybody on the way can read it, and nobody asked."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme.lower() == "https" or is_local(host) or asked or os.environ.get(ASKED) == "1":
        return
    raise InputError(f"the key would go over plain http to {host!a}", where=name,
                     remedy=f"Use https, or unset {name}; {ASKED}=1 sends it all the same")  # fmt: skip


def opener(url: str, *handlers: BaseHandler) -> OpenerDirector:
    """What opens ``url``: through the user's proxy, but this machine's own servers directly.

    A proxy could not reach them, and would read a key on the way.
    """
    return build_opener(ProxyHandler({} if is_local(urlsplit(url).hostname or "") else None), *handlers)


def without(key: str, said: str) -> str:
    """Somebody's words with ``(key)`` in place of the key, if there is one."""
    return said.replace(key, "(key)") if key else said
