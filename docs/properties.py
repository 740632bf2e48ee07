"""Run the property matrix and write docs/properties.md: `python docs/properties.py`."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from pathlib import Path

from jaxiter.testing import matrix

PAGE = """# Properties

Every differentiable front function, as a scalar function of three numbers, under every
transformation; `python docs/properties.py` runs the checks and writes this page, and
`tests/test_matrix.py` runs them again, but for some rows that take long to compile. **jit**: the
eager value. **vmap**, **pmap** (eight devices), **shard_map** (eight devices, `check_vma=True`):
values and gradients, one by one. **grad**: central differences. **jvp**: the gradient's product.
**remat**, **scan**: the gradient through `jax.checkpoint` and inside a `lax.scan`.

{table}
Not promised: {reasons}.
"""


def main() -> None:
    """Run every check and write the page."""
    rows = {}
    for case in matrix.CASES:
        rows[case] = matrix.check(case)
        print(case, rows[case], flush=True)
    reasons = "; ".join(f"`{case}` under {name}: {why}"
                        for (case, name), why in matrix.EXCEPTIONS.items())
    page = PAGE.format(table=matrix.table(rows), reasons=reasons)
    Path(__file__).with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
