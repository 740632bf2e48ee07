"""The truth audit in full: `python benchmarks/audit.py [count] [name]`, 200,000 odd problems.

`name` is that of the result, "audit" unless another is given. Another one also runs the problems
of `accuracy` where the library has no such rule, with `tolerance` in its place.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
from harness import save
from jaxiter.testing import matrix
from jaxiter.testing.audit import SPECIAL, Verdict, all_cases

COUNTS = Verdict._fields[1:]


def in_the_graph(count: int = 64) -> dict:
    """Every differentiable front function, value and gradient, on thetas of any kind: none raises.

    NaN is the honest answer to a NaN; a number where theta is not one would be a lie.
    """
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        thetas = (rng.normal(size=(count, 3)) * 10.0 ** rng.integers(-30, 30, (count, 1)))
        odd = rng.random((count, 3)) < 0.3
        thetas[odd] = rng.choice(SPECIAL, odd.sum())
        thetas = jnp.asarray(thetas, jnp.float32)
    raised = []
    for name, function in matrix.CASES.items():
        try:
            jax.block_until_ready(jax.jit(jax.vmap(jax.value_and_grad(function)))(thetas))
        except Exception as error:  # whatever it is, it is what the audit looks for
            raised.append(f"{name}: {type(error).__name__}")
        print(name, raised, flush=True)
    return {"functions": len(matrix.CASES), "thetas": count, "raised": raised}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    name = sys.argv[2] if len(sys.argv) > 2 else "audit"
    rule, rule_name = getattr(ji, "accuracy", None), "accuracy"
    if rule is None and name != "audit":
        rule, rule_name = ji.tolerance, "tolerance, by distance"
    rows, begin = [], time.perf_counter()
    for seed, (share, case) in enumerate(all_cases(rule, rule_name)):
        started = time.perf_counter()
        rows.append(case(seed, max(int(share * count) // 8 * 8, 8))._asdict())
        print(*rows[-1].values(), f"{time.perf_counter() - started:.1f} s", flush=True)
    total = {key: sum(row[key] for row in rows) for key in COUNTS}
    print(total, f"{time.perf_counter() - begin:.0f} s")
    save(name, {"rows": rows, "total": total, "in the graph": in_the_graph()})


if __name__ == "__main__":
    main()
