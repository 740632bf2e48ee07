"""The short examples run, and say what is known to be true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"


def printed(name, *arguments):
    out = subprocess.run([sys.executable, str(FOLDER / name), *arguments], capture_output=True,
                         text=True, timeout=240)
    assert out.returncode == 0, out.stdout + out.stderr[-2000:]
    return out.stdout


@pytest.mark.slow
def test_kuhn_poker():
    """The value of the game, and its equilibria: the king is bet three times the jack."""
    text = printed("kuhn_poker.py")
    assert "CONVERGED" in text and "value -0.0555" in text
    king, jack = map(float, re.search(r"jack: ([\d.]+) and 3 x ([\d.]+)\.", text).groups())
    assert abs(king - 3 * jack) < 0.01 and "the slope is -0.0555" in text


@pytest.mark.slow
def test_knapsack_bounds():
    """Every bound holds; after 500 steps they are within 2 per cent in the mean."""
    text = printed("knapsack_bounds.py", "500")
    mean, largest, smallest = map(float, re.search(
        r"mean ([\d.]+), largest ([\d.]+), smallest ([\d.-]+)", text).groups())
    assert "100 of 100 bounds hold" in text and 0 <= smallest <= mean < 2 and largest < 5


@pytest.mark.slow
def test_membranes():
    """A cable in eight pieces is the known one; two values enclose the square's."""
    text = printed("membranes.py", "8")
    proved, stress = map(float, re.search(r"cable: ([\d.]+) proved, ([\d.]+)", text).groups())
    exact = ((1 - 1 / 8**2) / 6) ** 0.5
    assert exact - 1e-3 < proved < exact + 1e-5 and abs(stress - exact) < 1e-3
    proved, stress = map(float, re.search(r"square: ([\d.]+) proved, ([\d.]+)", text).groups())
    assert 0 <= stress - proved < 3e-3 and text.count("CONVERGED") == 2
