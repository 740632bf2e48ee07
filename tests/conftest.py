"""Eight CPU devices, strict dtypes; set JAXITER_X64=1 to run the suite in float64."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# A jaxlib that does not know a flag ends the process.
OLD_EMITTERS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # Compiling takes most of the time here. XLA's own passes all run; fusions are emitted as by
    # the older of its two emitters, where there are two, in half the time; LLVM does not try hard,
    # and in one piece: the workers keep the cores busy.
    + " --xla_cpu_use_fusion_emitters=false" * OLD_EMITTERS
    + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("MPLBACKEND", "Agg")
# Workers, subprocesses and later runs share what is compiled: a second run takes half the time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

# Traced programs live as long as the process: looking through them again and again for garbage
# is a twentieth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

jax.config.update("jax_enable_x64", os.environ.get("JAXITER_X64", "0") == "1")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Nobody reads where an operation of a compiled program came from: a fourteenth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield
