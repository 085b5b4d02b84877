"""What the C library does with memory that a step has freed: on a CPU it is wanted again at the next one."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

# Parameters of mallopt(3), and the largest value that glibc takes for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 1024 * 1024
_NEVER = -1


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep freed blocks of up to 32 MB instead of giving them back to the system.

    Every step frees its activations, and the next one asks for as much: the system then has to find and clear each page
    anew, which takes several percent of a step's time. Where ``MALLOC_*`` or ``GLIBC_TUNABLES`` say something about it
    (``MALLOC_TRIM_THRESHOLD_=131072`` is what glibc begins with), nothing is changed. What is computed is the same to
    the last bit.

    Returns:
        Whether something was changed; not where the C library is another one.
    """
    is_settled = any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get(
        "GLIBC_TUNABLES", ""
    )
    if is_settled or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
