"""What the C library does with memory that a step has freed: on a CPU it is wanted again at the next one."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Mapping

# Parameters of mallopt(3), what glibc begins with for the last, and the largest value that it takes for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST = 32 * 1024 * 1024
_NEVER = -1
_MAPPINGS = 65536
_SMALL = 64 * 1024


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep freed blocks of up to 32 MB, in huge pages, instead of giving them back to the system.

    Every step frees its activations, and the next one asks for as much: the system then has to find and clear each page
    anew, and the processor to look up where each is, which together take about a tenth of a step's time. Where
    ``MALLOC_*`` or ``GLIBC_TUNABLES`` say something about it (``MALLOC_TRIM_THRESHOLD_=131072`` is what glibc begins
    with), nothing is changed. What is computed is the same to the last bit.

    Returns:
        Whether something was changed; not where the C library is another one.
    """
    if _is_settled(environ) or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:  # musl has none
        return False
    if not (mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER)):
        return False
    _prefer_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2)
    return True


def map_each_block(environ: Mapping[str, str] = os.environ) -> None:
    """Have blocks from 64 kB up mapped one by one from now on, and what is freed given back, where memory is short.

    torch asks for blocks that begin at multiples of 64 bytes. What glibc 2.36 leaves of one that was freed between two
    that are in use, it does not take for another of that size: a pass that keeps 73 MB was seen to hold 1 GB. Mapped,
    nothing is lost; every block costs the system some time. Where the environment says something about it, no block
    is mapped that would not have been.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not _is_settled(environ) and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _SMALL)
    if hasattr(libc, "malloc_trim"):  # musl has none of both
        libc.malloc_trim(0)


def _is_settled(environ: Mapping[str, str]) -> bool:
    is_named = any(name.startswith("MALLOC_") for name in environ)
    return is_named or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")


def _prefer_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Ask for huge pages (madvise(2)) for the next ``size`` bytes by which the heap grows.

    Nothing takes them before it is used: a block of that size is taken from the top of the heap, addresses only, and
    given back to it. Where the system does not grant so many addresses, all stays as it is.
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(_M_MMAP_MAX, 0)  # so that it comes from the heap
    try:
        block = libc.malloc(size)
    finally:
        libc.mallopt(_M_MMAP_MAX, _MAPPINGS)
    if block:
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, (block + size - start) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        libc.free(block)
