"""What a step frees is there for the next one, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rfflow.training.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from rfflow.training.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(1 << 20) for _ in range(40)]
    while blocks:
        blocks.pop()
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="for glibc")
def test_a_step_finds_the_pages_that_the_one_before_has_freed() -> None:
    """Counted in a process of its own: the pages that the system has to find for 160 MB."""

    def faults(*how: str) -> int:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        found = subprocess.run(
            [sys.executable, "-c", FAULTS, *how], env=environ, capture_output=True, text=True, check=True
        )
        return int(found.stdout)

    assert 10 * faults("keep") < faults()


@pytest.mark.parametrize(
    "environ", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_user_has_set_stands(environ: dict[str, str]) -> None:
    assert not keep_freed_memory(environ)
