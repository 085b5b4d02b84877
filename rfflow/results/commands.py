"""The commands that look at experiments, each imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence


def main(command: str, argv: Sequence[str]) -> int:
    """Run ``rfflow <command>`` and return its exit status."""
    from rfflow.results import listing

    return {"ls": listing.ls, "show": listing.show}[command](argv)
