"""Eight CPU devices, strict dtypes; set JAXITER_X64=1 to run the suite in float64."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # Compiling takes most of the time here. XLA's own passes all run; LLVM tries less hard.
    " --xla_backend_optimization_level=1"
)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", os.environ.get("JAXITER_X64", "0") == "1")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield
