"""Every differentiable front function under every transformation: one table.

A case is a scalar function of three numbers; a check compares the transformed function, or its
gradient, with the plain one. The rows are in `matrix_cases` and `matrix_transport`;
`python docs/properties.py` prints the table for the documentation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxiter.testing import matrix_cases, matrix_transport

THETA = jnp.array([0.3, 0.5, 0.8])
CASES: dict[str, Callable] = matrix_cases.CASES | matrix_transport.CASES


class Plain:
    """What a case is compared with; compiled once for all of its checks."""

    def __init__(self, function: Callable):
        self.both = jax.value_and_grad(function)
        self.one = jax.jit(self.both)
        self.many = jax.jit(jax.vmap(self.both))
        self.batch = THETA * jnp.linspace(0.8, 1.2, 8)[:, None]


def _close(ours: Any, reference: Any, tolerance: float = 2e-3) -> bool:
    ours, reference = np.asarray(ours, float), np.asarray(reference, float)
    scale = max(1.0, float(np.abs(reference).max()))
    return bool(np.isfinite(ours).all() and np.abs(ours - reference).max() <= tolerance * scale)


def _all_close(ours: Any, reference: Any) -> bool:
    return all(_close(a, b) for a, b in zip(ours, reference, strict=True))


def _jit(f: Callable, plain: Plain) -> bool:
    return _close(plain.one(THETA)[0], f(THETA))


def _vmap(f: Callable, plain: Plain) -> bool:
    return _all_close([part[5] for part in plain.many(plain.batch)], plain.one(plain.batch[5]))


def _grad(f: Callable, plain: Plain) -> bool:
    """Against central differences."""
    width = 1e-2 * jnp.eye(3)
    ends = jnp.concatenate([THETA + width, THETA - width, plain.batch[:2]])
    values = np.asarray(plain.many(ends)[0], float)
    return _close(plain.one(THETA)[1], (values[:3] - values[3:6]) / 2e-2, 2e-2)


def _jvp(f: Callable, plain: Plain) -> bool:
    tangent = jax.jit(lambda t: jax.jvp(f, (t,), (jnp.ones(3),))[1])(THETA)
    return _close(tangent, jnp.sum(plain.one(THETA)[1]))


def _remat(f: Callable, plain: Plain) -> bool:
    around = jax.checkpoint(lambda t: jnp.sin(f(jnp.sin(t))))
    value, slope = plain.one(jnp.sin(THETA))
    return _close(jax.jit(jax.grad(around))(THETA), jnp.cos(value) * slope * jnp.cos(THETA))


def _scan(f: Callable, plain: Plain) -> bool:
    def summed(theta: jax.Array) -> jax.Array:
        return lax.scan(lambda c, s: (c + f(s * theta), None), 0 * theta[0], jnp.ones(2))[0]

    return _close(jax.jit(jax.grad(summed))(THETA), 2 * plain.one(THETA)[1])


def _pmap(f: Callable, plain: Plain) -> bool:
    return _all_close(jax.pmap(plain.both)(plain.batch), plain.many(plain.batch))


def _shard_map(f: Callable, plain: Plain) -> bool:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(jax.vmap(plain.both), mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    return _all_close(jax.jit(spread)(plain.batch), plain.many(plain.batch))


CHECKS: dict[str, Callable] = {"jit": _jit, "vmap": _vmap, "grad": _grad, "jvp": _jvp,
                               "remat": _remat, "scan": _scan, "pmap": _pmap,
                               "shard_map": _shard_map}
#: Not promised, and why: the documentation prints the reasons.
EXCEPTIONS = {
    ("fixed_point, implicit(mode='vjp')", "jvp"): "registers the reverse rule only, as it says",
    ("sparse_transport", "shard_map"):
        "optax's line search is rejected by a checked shard_map; pass `check_vma=False`",
}


def check(case: str, *names: str) -> dict[str, bool | None]:
    """The checks of a case by name, or all of them; None where it is not promised."""
    plain = Plain(CASES[case])
    return {name: None if (case, name) in EXCEPTIONS else CHECKS[name](CASES[case], plain)
            for name in names or CHECKS}


def table(rows: dict[str, dict[str, bool | None]]) -> str:
    """Checked cases in Markdown."""
    marks = {True: "yes", False: "**no**", None: "-"}
    lines = [["", *CHECKS], ["---"] * (1 + len(CHECKS))]
    lines += [[f"`{case}`", *(marks[row[name]] for name in CHECKS)] for case, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
