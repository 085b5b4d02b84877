"""What a step frees is there for the next one, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfflow.worker.memory.allocator import keep_freed_memory

# A block as large as that comes from the system by itself, and goes back there, unless glibc is told to keep it.
KEPT = """
import ctypes
from rfflow.worker.memory.allocator import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
block = libc.malloc(24 << 20)
ctypes.memset(ctypes.c_void_p(block), 1, 24 << 20)
libc.free(block)
is_here = False
for line in open("/proc/self/smaps"):  # where the block was: is it still there, and in what kind of pages
    name, _, rest = line.partition(" ")
    if not name.endswith(":"):
        start, end = (int(word, 16) for word in name.split("-"))
        is_here = start <= block + (12 << 20) < end
    elif is_here and name == "Rss:":
        print(int(rest.split()[0]))
    elif is_here and name == "VmFlags:":
        print(*rest.split())
"""

HOLES = """
import ctypes
from pathlib import Path
from rfflow.worker.memory.allocator import keep_freed_memory, map_each_block
assert keep_freed_memory()
map_each_block()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
blocks = [libc.malloc(1 << 20) for _ in range(100)]
for block in blocks:
    ctypes.memset(ctypes.c_void_p(block), 1, 1 << 20)
before = resident()
for block in blocks[::2]:
    libc.free(block)
print((before - resident()) * 4)
"""


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="for glibc")
def test_what_is_freed_is_kept_and_in_huge_pages() -> None:
    """In a process of its own: what has been changed cannot be taken back."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run([sys.executable, "-c", KEPT], env=environ, capture_output=True, text=True, check=True)
    kilobytes, flags = found.stdout.splitlines()
    assert int(kilobytes) > 23 << 10
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert "hg" in flags.split()


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="for glibc")
def test_where_memory_is_short_what_is_freed_between_others_goes_back() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run([sys.executable, "-c", HOLES], env=environ, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 45 << 10


@pytest.mark.parametrize(
    "environ", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_user_has_set_stands(environ: dict[str, str]) -> None:
    assert not keep_freed_memory(environ)
