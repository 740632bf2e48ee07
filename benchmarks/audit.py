"""The truth audit in full: `python benchmarks/audit.py [count]` solves some 40,000 odd problems."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxiter as ji
from harness import save
from jaxiter import linear
from jaxiter.testing import matrix
from jaxiter.testing.audit import (
    SPECIAL,
    audit_fixed_point,
    audit_hypergradient,
    audit_inner,
    audit_linear,
    audit_recurrence,
    audit_sample,
    audit_sinkhorn,
)

SOLVERS = {"picard": ji.picard(), "damped": ji.damped(0.7), "anderson": ji.anderson(3),
           "anderson-1": ji.anderson(3, kind=1), "halpern": ji.halpern("adaptive"),
           "restarted": ji.restarted(ji.halpern(), every=8)}
LINEAR = {"bicgstab": linear.bicgstab(), "gmres": linear.gmres(), "normal_cg": linear.normal_cg(),
          "dense": linear.dense()}


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
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    cases = [partial(audit_fixed_point, size=size, dtype=dtype, solver=solver, name=name)
             for size, dtype in ((1, jnp.float32), (3, jnp.float32), (7, jnp.bfloat16),
                                 (2, jnp.float16))
             for name, solver in SOLVERS.items()]
    cases += [partial(audit_linear, size=size, solver=solver, name=name, symmetric=False)
              for size in (1, 5) for name, solver in LINEAR.items()]
    cases += [partial(audit_linear, size=5, solver=linear.cg(), name="cg", symmetric=True)]
    cases += [partial(audit_sinkhorn, method=m) for m in ("log", "kernel", "auto", "newton")]
    cases += [partial(audit_recurrence, method=m)
              for m in ("newton", "diagonal", "elk", "secant", "picard", "jacobi")]
    cases += [partial(audit_hypergradient, solve=s) for s in ("cg", "dense", "neumann")]
    cases += [partial(audit_fixed_point, size=3, dtype=jnp.float32, solver=SOLVERS[name],
                      name=name, lanes=32) for name in ("picard", "anderson")]
    cases += [audit_inner, *(partial(audit_sample, linearization=m)
                             for m in ("secant", "picard", "jvp", "gaussian"))]
    rows = []
    for seed, case in enumerate(cases):
        rows.append(case(seed, count)._asdict())
        print(rows[-1], flush=True)
    with jax.enable_x64(True):
        for name in ("picard", "anderson"):
            rows.append(audit_fixed_point(99, count, 3, jnp.float64, SOLVERS[name], name)._asdict())
            print(rows[-1], flush=True)
    total = {key: sum(r[key] for r in rows) for key in ("solves", "converged", "false", "silent")}
    print(total)
    save("audit", {"rows": rows, "total": total, "in the graph": in_the_graph()})


if __name__ == "__main__":
    main()
