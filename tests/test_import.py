"""Importing the library costs little more than importing what it needs."""

import subprocess
import sys
import time

import pytest


def seconds(program):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


@pytest.mark.slow
def test_import_budget():
    """The least of some interleaved runs: another process may be using the cores."""
    runs = [(seconds("import jaxiter"), seconds("import jax, optax, equinox")) for _ in range(5)]
    ours, needed = (min(times) for times in zip(*runs, strict=True))
    assert ours < 1.3 * needed, (ours, needed)
