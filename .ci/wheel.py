"""Run by .ci/run in a clean environment that holds the wheel alone: what a user gets.

`python wheel.py README.md` imports the installed package away from the source, looks for the typed
marker, and runs the README's first example.
"""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import jaxiter

here = Path(jaxiter.__file__)
assert "site-packages" in here.parts, f"imported from {here}, not from the wheel"
assert (here.parent / "py.typed").exists(), "the wheel lacks py.typed"
files = [str(path) for path in distribution("jaxiter").files or []]
strays = [path for path in files if not path.startswith(("jaxiter/", "jaxiter-"))]
assert not strays, strays
example = re.search(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.S).group(1)
exec(compile(example, "README.md", "exec"), {})
