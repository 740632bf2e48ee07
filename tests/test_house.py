"""What the tree promises about itself: no circles, short files, no loops but those on the list."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "jaxiter"
LOOPS = {"while_loop", "scan", "fori_loop", "associative_scan", "map"}
FILES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text())
         for path in sorted(SOURCE.rglob("*.py"))}
#: Modules that import at call time, or the package as a user does.
OUTSIDE = ("testing", "__main__.py")


def test_loops_outside_the_core_are_on_the_list():
    """docs/architecture.md names every file with a loop of its own, with the reason."""
    found = {name for name, tree in FILES.items() if not name.startswith(OUTSIDE)
             for node in ast.walk(tree)
             if isinstance(node, ast.Call) and (
                 ast.unparse(node.func) in ("trees.iterates", "trained")
                 or isinstance(node.func, ast.Attribute) and node.func.attr in LOOPS
                 and ast.unparse(node.func.value) in ("lax", "jax.lax"))}
    page = (ROOT / "docs" / "architecture.md").read_text()
    part = page.split("## Loops")[1].split("\n## ")[0]
    assert found == set(re.findall(r"`([\w/]+\.py)`", part))


def test_files_and_functions_are_short():
    long = [name for name in FILES
            if len((SOURCE / name).read_text().splitlines()) > 350]
    for name, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > 60:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert not long


def test_imports_make_no_circle():
    """Between modules; a package stands for its `__init__.py`."""
    names = {"jaxiter." + name[:-3].replace("/", ".").removesuffix(".__init__"): name
             for name in FILES if not name.startswith(OUTSIDE) and name != "__init__.py"}
    graph: dict[str, set[str]] = {}
    for module, name in names.items():
        wanted = set()
        for node in FILES[name].body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    wanted.add(inner if inner in names else node.module)
        graph[module] = wanted & set(names)
    left = dict(graph)
    while left:
        free = [module for module, wanted in left.items() if not wanted & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]
