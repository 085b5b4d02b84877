"""What a step frees is there for the next one, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rfflow.training.allocator import keep_freed_memory

# A block as large as that comes from the system by itself, and goes back there, unless glibc is told to keep it.
KEPT = """
import ctypes
from rfflow.training.allocator import keep_freed_memory
assert keep_freed_memory()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks hblkhd usm fsm uord ford keep".split()]
libc = ctypes.CDLL(None)
libc.mallinfo.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
held = lambda: libc.mallinfo().arena  # what is not mapped by itself
before = held()
block = libc.malloc(24 << 20)
libc.free(block)
print(held() - before)
"""


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="for glibc")
def test_what_is_freed_is_kept() -> None:
    """In a process of its own: what has been changed cannot be taken back."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run([sys.executable, "-c", KEPT], env=environ, capture_output=True, text=True, check=True)
    assert int(found.stdout) >= 23 << 20


@pytest.mark.parametrize(
    "environ", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_user_has_set_stands(environ: dict[str, str]) -> None:
    assert not keep_freed_memory(environ)
