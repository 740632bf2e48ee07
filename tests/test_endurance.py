"""A solve killed with SIGKILL resumes from its checkpoint to the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "endurance.py"


@pytest.mark.slow  # test_driver.py resumes bitwise within one process
def test_killed_and_resumed():
    out = subprocess.run([sys.executable, str(SCRIPT), "1"], capture_output=True, text=True,
                         timeout=240)
    assert out.returncode == 0 and "1 of 1" in out.stdout, out.stdout + out.stderr[-2000:]
