"""The main job, and the promises of the README."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_quick_tour(tmp_path):
    out = subprocess.run([sys.executable, "-m", "jaxiter", "--quick", "--out", str(tmp_path)],
                         capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    rows = [line for line in out.stdout.splitlines() if line.endswith("CONVERGED")]
    assert len(rows) == 8 and "instead of 100" in out.stdout and "relative error" in out.stdout
    assert (tmp_path / "tour.png").stat().st_size > 20_000


def test_help():
    out = subprocess.run([sys.executable, "-m", "jaxiter", "--help"], capture_output=True,
                         text=True)
    assert out.returncode == 0 and "--quick" in out.stdout and "--out" in out.stdout


def test_unconverged_solves_are_an_exit_code(monkeypatch, tmp_path):
    import jaxiter.__main__ as tour

    def broken(rows, quick):
        rows.append(tour.Row("x", "y", 1, 0.0, 1.0, "MAX_STEPS"))

    monkeypatch.setattr(tour, "logistic", broken)
    for name in ("digits_transport", "tune_decay", "uneven", "parallel_sampling"):
        monkeypatch.setattr(tour, name, lambda rows, quick: None)
    monkeypatch.setattr(tour, "draw", lambda results, path: None)
    assert tour.main(["--out", str(tmp_path)]) == 1


def test_readme_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    if not blocks:
        pytest.fail("the README shows no example")
    with jax.numpy_dtype_promotion("standard"):  # as users have it; optax.adam needs it
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {})


def test_every_solver_and_adjoint_is_documented():
    import jaxiter

    methods = (ROOT / "docs" / "methods.md").read_text()
    for name in ("picard", "damped", "inertial", "anderson", "halpern", "guard", "restarted",
                 "no_fixed_point", "implicit", "neumann", "one_step", "unrolled", "solve_many",
                 "sinkhorn", "bicgstab", "gmres"):
        assert f"`{name}" in methods, name
    assert set(jaxiter.__all__) <= set(dir(jaxiter))


def test_no_private_imports_and_short_files():
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert "jax._src" not in text and "equinox.internal" not in text
        assert "jax.distributed" not in text
        # Collectives belong to the caller's map; only a layer with an `axis_name` may use one.
        assert "lax.psum" not in text or "axis_name" in text, path
        if path.parent == ROOT / "src" / "jaxiter":
            assert "psum" not in text, "the core is local"
        assert text.count("\n") <= 420, path
