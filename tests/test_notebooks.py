"""Every notebook runs from top to bottom: one by default, the others with the slow tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
RUN = """
import sys, nbformat
from nbclient import NotebookClient
NotebookClient(nbformat.read(sys.argv[1], 4), timeout=120, kernel_name="python3").execute()
"""


@pytest.mark.parametrize("path", [
    path if path.stem == "hyper_cleaning" else pytest.param(path, marks=pytest.mark.slow)
    for path in NOTEBOOKS], ids=[path.stem for path in NOTEBOOKS])
def test_notebook_runs(path):
    environment = {**os.environ, "JAXITER_QUICK": "1"}
    out = subprocess.run([sys.executable, "-c", RUN, str(path)], env=environment,
                         capture_output=True, text=True, timeout=240)
    assert out.returncode == 0, out.stderr[-3000:]


def test_there_are_notebooks():
    assert NOTEBOOKS
