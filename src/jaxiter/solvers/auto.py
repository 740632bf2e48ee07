"""A solver that watches its own residuals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.solvers.anderson import _forget, anderson
from jaxiter.solvers.guard import guard
from jaxiter.solvers.overrelaxation import overrelaxed
from jaxiter.solvers.residual import hosted, residual_solver
from jaxiter.values import as_value

PyTree = Any



class AutoState(NamedTuple):
    anderson: PyTree
    relaxed: PyTree
    second: jax.Array
    age: jax.Array
    best: jax.Array
    mark: jax.Array
    bar: jax.Array
    wait: jax.Array


@as_value
def auto(look=60, slow=10.0, grace=1, early=True, memory=10) -> optax.GradientTransformationExtraArgs:
    core = guard(anderson(memory, safeguard=None), 2.0, reset=_forget, grace=grace)
    first, other = hosted(core), overrelaxed()

    def init(params):
        zero = jnp.int32(0)
        inf = jnp.full((), jnp.inf, trees.norm_dtype(params))
        return AutoState(first.init(params), other.init(params), jnp.bool_(False), zero, inf, inf,
                         jnp.zeros_like(inf), jnp.int32(1))

    def update(residual, state, params, *, merit, previous, **extra):
        best = jnp.minimum(state.best, jnp.where(jnp.isfinite(merit), merit, jnp.inf))
        age = state.age + 1
        looks = age % look == 0
        fall = state.mark / best  # over the last look steps
        # Anderson: too slow for its own good
        try_other = looks & ~state.second & (fall < slow) & (age >= look * state.wait)
        back = looks & state.second & (age >= 2 * look) & ~(fall > state.bar)
        switch = try_other | back
        g = state.anderson
        if early:
            g = g._replace(inner=g.inner._replace(age=jnp.where(g.inner.age == 1, 2, g.inner.age)))
        fresh = first.init(params)
        g = trees.where(back, fresh._replace(rejected=g.rejected), g)
        r = trees.where(try_other, other.init(params), state.relaxed)
        second = state.second ^ switch
        inc1, g2 = first.update(residual, g, params, merit=merit, previous=previous)
        inc2, r2 = other.update(residual, r, params, merit=merit)
        inc = trees.where(second, inc2, inc1)
        return inc, AutoState(
            trees.where(second, g, g2), r2, second, jnp.where(switch, 0, age).astype(jnp.int32), best,
            jnp.where(looks | switch, best, state.mark), jnp.where(try_other, fall, state.bar),
            jnp.where(back, 4 * state.wait, state.wait).astype(jnp.int32))

    return residual_solver("auto", init, update, ("params", "merit", "previous"))
