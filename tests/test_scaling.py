"""The lines of arithmetic of docs/scaling.md against what XLA counts, on one device and eight."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROGRAM = "import json, scaling; print(json.dumps(scaling.model()))"


@pytest.mark.slow
def test_the_model_of_an_iteration_is_what_is_compiled():
    out = subprocess.run([sys.executable, "-c", PROGRAM], cwd=BENCHMARKS, capture_output=True,
                         text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    for row in json.loads(out.stdout.splitlines()[-1]):
        assert 0.8 < row["predicted flops / counted"] < 1.1, row
        assert row["messages"] <= row["predicted messages"] + 2, row
        if row["family"].startswith(("layer", "grid, n")):
            assert row["messages"] == row["predicted messages"], row
