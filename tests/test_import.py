"""Importing the library costs little more than importing what it needs."""

import os
import subprocess
import sys

import pytest


def seconds(program):
    """Of the processor's time: others may be using the cores."""
    start = os.times()
    subprocess.run([sys.executable, "-c", program], check=True)
    end = os.times()
    return end.children_user + end.children_system - start.children_user - start.children_system


@pytest.mark.slow
def test_import_budget():
    """The least of some interleaved runs; of five one of the two was not yet settled."""
    runs = [(seconds("import jaxiter"), seconds("import jax, optax, equinox")) for _ in range(10)]
    ours, needed = (min(times) for times in zip(*runs, strict=True))
    assert ours < 1.3 * needed, (ours, needed)
