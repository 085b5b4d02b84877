"""Who may read: a page that was opened under a name of this machine, so that no other site's page can be it."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def why_not_read(host: str, *, is_public: bool) -> str | None:
    """Return why a request is refused, None where it is not.

    A page of another site whose name leads to this machine by now (DNS rebinding) still sends that name.

    Args:
        host: the request's ``Host``.
        is_public: whether TensorBoard was told to serve other machines (``--bind_all``, ``--host``).
    """
    if is_public:
        return None
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        name = ""
    if name in LOOPBACK:
        return None
    return f"The page was asked for as {host!r}. Allowed here: {', '.join(LOOPBACK)}; or start with --bind_all."
