"""The truth audit in full: `python benchmarks/audit.py [count]` solves some 40,000 odd problems."""

import sys
from functools import partial

import jax
import jax.numpy as jnp

import jaxiter as ji
from harness import save
from jaxiter import linear
from jaxiter.testing.audit import (
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
    save("audit", {"rows": rows, "total": total})


if __name__ == "__main__":
    main()
