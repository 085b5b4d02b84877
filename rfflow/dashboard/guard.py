"""Who may read, and who may give ops: a page of this server, opened on this machine, by the user who runs the server.

A browser sends requests for whatever page it has open, those of strangers among them. What such a page can try, and
what keeps it out:

- to send an op from its own site, by a script or a form: the header with the page's token, which only a page that can
  read our answers has, and JSON, which no form sends; browsers say besides where a request comes from (``Origin``,
  ``Sec-Fetch-Site``);
- to be ours: a name of its own that leads to this machine by now (DNS rebinding) still stands in ``Host``;
- to send ``Host: localhost`` from another machine: the connection's other end is looked at, too, and whose it is.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rfflow.files import shown

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FORWARDED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP")


def why_not_read(host: str, *, is_public: bool) -> str | None:
    """Return why a request is refused, None where it is not.

    Args:
        host: the request's ``Host``.
        is_public: whether TensorBoard was told to serve other machines (``--bind_all``, ``--host``).
    """
    if is_public or _name(host) in LOOPBACK:
        return None
    return f"The page was asked for as {host!r}. Allowed here: {', '.join(LOOPBACK)}; or start with --bind_all."


@dataclass
class Guard:
    """Decides who may give ops, for one server."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """What a page is told that may read; it lives as long as the server."""
    key_file: Path = field(default_factory=lambda: _state_home() / "rfflow" / "tab-key")
    """Whose content lets a user in from elsewhere."""

    def why_forged(self, environ: Mapping[str, Any]) -> str | None:
        """Return why a request cannot be one of our page's, None where it can."""
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            return "The Content-Type must be application/json."
        if not hmac.compare_digest(environ.get("HTTP_X_RFFLOW", "").encode(), self.token.encode()):
            return "The header X-Rfflow is not this server's. Load the page again."
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and urlsplit(origin).netloc.lower() != environ.get("HTTP_HOST", "").lower():
            return f"The request comes from a page of {origin}."
        if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") != "same-origin":
            return "The request comes from a page of another site."
        return None

    def why_not_write(self, environ: Mapping[str, Any]) -> str | None:
        """Return why whoever asks may not give ops, None where they may."""
        if self._has_key(environ):
            return None
        host, peer = _name(environ.get("HTTP_HOST", "")), _address(environ.get("REMOTE_ADDR", ""))
        if host not in LOOPBACK:
            reason = f"the page was opened as {host or 'an unknown name'}, not as localhost"
        elif peer is None or not peer.is_loopback:
            reason = "the page was opened on another machine"
        elif any(environ.get(header) for header in _FORWARDED):
            reason = "the page comes through a proxy, which others may use too"
        elif (user := peer_uid(environ)) is None:
            reason = "this system does not tell whose connection it is"
        elif user != os.getuid():
            reason = f"the page was opened by another user of this machine ({user})"
        else:
            return None
        return f"Read-only: {reason}. Open it there as localhost (ssh -L brings that to your machine), or give the key."

    def key_path(self) -> str:
        """Return where the key lies, made if there is none yet; readable for this user alone."""
        with contextlib.suppress(FileExistsError):
            self.key_file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        return shown(self.key_file)

    def _has_key(self, environ: Mapping[str, Any]) -> bool:
        given = environ.get("HTTP_X_RFFLOW_KEY", "")
        if not given:
            return False
        try:
            status = os.lstat(self.key_file)
            key = self.key_file.read_text(encoding="utf-8").strip()
        except OSError:
            return False
        is_private = status.st_uid == os.getuid() and not status.st_mode & 0o077
        return is_private and len(key) >= 32 and hmac.compare_digest(given.encode(), key.encode())


def peer_uid(environ: Mapping[str, Any]) -> int | None:
    """Return the user at the other end of a connection on this machine; None where the system does not tell."""
    peer, port = _address(environ.get("REMOTE_ADDR", "")), environ.get("REMOTE_PORT")
    if peer is None or not port:
        return None
    wanted = (int(port), int(environ.get("SERVER_PORT", 0)))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError, ValueError, IndexError), open(table, encoding="ascii") as file:
            for line in file.readlines()[1:]:
                local, remote, state, *_, user = line.split(None, 8)[1:8]
                here, there = local.split(":"), remote.split(":")
                if (int(here[1], 16), int(there[1], 16)) == wanted and state == "01" and _of_kernel(here[0]) == peer:
                    return int(user)
    return None


def _of_kernel(text: str) -> Any:
    """Read an address as the kernel writes it: words of four bytes, each the other way round."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return _address(str(ipaddress.ip_address(b"".join(words))))


def _address(text: str) -> Any:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
