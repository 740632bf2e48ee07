"""Every kind of bad input: an eager error that says what was seen, a status under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status, linear

ONE = jnp.ones(2)


SAMPLER = ji.diffusion.ddpm(ji.diffusion.linear_beta_schedule(5))
MODEL = ji.diffusion.Denoiser(lambda x, t: x, "eps")


def identity(x):
    return x


CASES = {
    "shape": (lambda: ji.fixed_point(lambda x: x[:1], ONE), TypeError, r"\[2\].*\[1\]"),
    "dtype": (lambda: ji.fixed_point(lambda x: x.astype(jnp.bfloat16), ONE), TypeError, "bfloat16"),
    "leaf path": (lambda: ji.fixed_point(
        lambda x: {"a": x["a"], "b": x["b"][None]}, {"a": ONE, "b": ONE}), TypeError, r"\['b'\]"),
    "structure": (lambda: ji.fixed_point(lambda x: (x, x), ONE), TypeError, "structure"),
    "integer x0": (lambda: ji.fixed_point(identity, {"n": jnp.arange(3)}), TypeError,
                   r"\['n'\].*int"),
    "empty x0": (lambda: ji.fixed_point(identity, {}), ValueError, "no array leaves"),
    "NaN x0": (lambda: ji.fixed_point(identity, jnp.array([1.0, jnp.nan])), ValueError, "NaN"),
    "string x0": (lambda: ji.fixed_point(identity, {"s": "text"}), TypeError, "str"),
    "not a map": (lambda: ji.fixed_point(3, ONE), TypeError, "int"),
    "number as stop": (lambda: ji.fixed_point(identity, ONE, stop=1e-5), TypeError, "a rule"),
    "max_steps": (lambda: ji.fixed_point(identity, ONE, max_steps=-1), ValueError, "-1"),
    "half a step": (lambda: ji.fixed_point(identity, ONE, max_steps=10.5), TypeError, "10.5"),
    "traced float steps": (lambda: jax.jit(lambda n: ji.fixed_point(
        identity, ONE, max_steps=n))(3.0), TypeError, "an integer"),
    "endless": (lambda: ji.solve_many(identity, ONE[:, None], max_steps=2**40), ValueError,
                "1099511627776"),
    "steps of a batch": (lambda: ji.fixed_point(identity, ONE, max_steps=jnp.arange(2)), TypeError,
                         "vmap"),
    "named solve": (lambda: ji.implicit("gmres"), TypeError, "gmres"),
    "half a term": (lambda: ji.neumann(2.5), ValueError, "2.5"),
    "named tolerance": (lambda: ji.tolerance("small"), TypeError, "small"),
    "no mesh": (lambda: ji.over_mesh(identity, None, "d"), TypeError, "Mesh"),
    "integer answer": (lambda: ji.attach_implicit(lambda x: x, jnp.arange(2)), TypeError,
                       "x_star.*int32"),
    "no loop": (lambda: ji.attach_implicit(identity, ONE, adjoint=ji.unrolled()), ValueError,
                "attach_implicit has none"),
    "series of F": (lambda: ji.root(identity, ONE, adjoint=ji.neumann(3)), ValueError,
                    "other equations"),
    "series of F on failure": (lambda: ji.root(
        identity, ONE, adjoint=ji.implicit(on_failure=ji.one_step())), ValueError, "equations"),
    "check_every": (lambda: ji.fixed_point(identity, ONE, check_every=0), ValueError, "0"),
    "uncalled solver": (lambda: ji.fixed_point(identity, ONE, solver=ji.anderson), TypeError,
                        "forget to call"),
    "aux missing": (lambda: ji.fixed_point(identity, ONE, has_aux=True), TypeError, r"\(x, aux\)"),
    "memory": (lambda: ji.anderson(0), ValueError, "memory.*0"),
    "negative memory": (lambda: ji.anderson(-2), ValueError, "memory.*-2"),
    "period": (lambda: ji.anderson(period=0), ValueError, "period.*0"),
    "kind": (lambda: ji.anderson(kind=3), ValueError, "3"),
    "mixing": (lambda: ji.anderson(mixing=1.5), ValueError, "1.5"),
    "damping": (lambda: ji.damped(2.5), ValueError, "2.5"),
    "inertia": (lambda: ji.inertial(1.0), ValueError, "1.0"),
    "overrelaxation": (lambda: ji.overrelaxed(every=15), ValueError, "multiple of 10"),
    "guard": (lambda: ji.guard(ji.picard(), 0.5), ValueError, "0.5"),
    "restarted": (lambda: ji.restarted(ji.picard()), ValueError, "every"),
    "halpern restart": (lambda: ji.halpern("often"), ValueError, "often"),
    "contraction": (lambda: ji.halpern(contraction=1.5), ValueError, "1.5"),
    "rtol": (lambda: ji.tolerance(rtol=-1e-3), ValueError, "-0.001"),
    "both zero": (lambda: ji.tolerance(rtol=0, atol=0), ValueError, "both 0"),
    "no rules": (lambda: ji.any_of(), ValueError, "at least one"),
    "params": (lambda: ji.anderson().update(ONE, ji.anderson().init(ONE)), ValueError, "params"),
    "terms": (lambda: ji.neumann(0), ValueError, "0"),
    "one_step": (lambda: ji.one_step(0), ValueError, "0"),
    "checkpoint": (lambda: ji.unrolled(0), ValueError, "0"),
    "mode": (lambda: ji.implicit(mode="both"), ValueError, "both"),
    "unrolled traced": (lambda: jax.jit(lambda n: ji.fixed_point(
        identity, ONE, adjoint=ji.unrolled(), max_steps=n))(3), TypeError, "Python int"),
    "gmres": (lambda: linear.gmres(restart=0), ValueError, "0"),
    "record": (lambda: ji.record(capacity=0), ValueError, "0"),
    "lanes": (lambda: ji.solve_many(identity, ONE[:, None], lanes=0), ValueError, "lanes.*0"),
    "batch": (lambda: ji.solve_many(lambda x, a: x, jnp.ones((3, 2)), jnp.ones(4)), ValueError,
              r"args\[0\] has 4"),
    "in_axes": (lambda: ji.solve_many(lambda x, a: x, jnp.ones((3, 2)), jnp.ones(3),
                                      in_axes=(0, 0)), ValueError, "2 entries for 1"),
    "resume many": (lambda: ji.solve_many(identity, ONE[:, None], resume=1), ValueError, "resume"),
    "mesh axis": (lambda: ji.over_mesh(identity, jax.make_mesh((8,), ("d",)), "e"), ValueError,
                  "'e'"),
    "cite a solver": (lambda: ji.cite(ji.anderson()), TypeError, "cite.solve.*GradientTransf"),
    "difficulty": (lambda: ji.over_mesh(identity, jax.make_mesh((8,), ("d",)), "d")(
        ONE, difficulty=jnp.ones(3)), ValueError, "has 2.*has 3"),
    "difficulty rank": (lambda: ji.over_mesh(identity, jax.make_mesh((8,), ("d",)), "d")(
        ONE, difficulty=jnp.ones((2, 2))), ValueError, r"\(2, 2\)"),
    "recurrence method": (lambda: ji.recurrence.solve_recurrence(
        lambda s, x: s, ONE, length=3, method="newtn"), ValueError, "'newtn'"),
    "cost shape": (lambda: ji.transport.sinkhorn(ONE, epsilon=1.0), ValueError, "matrix"),
    "a shape": (lambda: ji.transport.sinkhorn(jnp.ones((2, 3)), jnp.ones(3), epsilon=1.0),
                ValueError, r"\(3,\)"),
    "negative weight": (lambda: ji.transport.sinkhorn(
        jnp.ones((2, 2)), jnp.array([1.5, -0.5]), epsilon=1.0), ValueError, "negative"),
    "unequal mass": (lambda: ji.transport.sinkhorn(
        jnp.ones((2, 2)), ONE, 0.5 * ONE, epsilon=1.0), ValueError, "differs from"),
    "epsilon": (lambda: ji.transport.sinkhorn(jnp.ones((2, 2)), epsilon=0.0), ValueError, "0.0"),
    "infinite epsilon": (lambda: ji.transport.sinkhorn(jnp.ones((2, 2)), epsilon=jnp.inf),
                         ValueError, "inf"),
    "huge epsilon": (lambda: ji.transport.sinkhorn(jnp.ones((2, 2)), epsilon=1e38), ValueError,
                     "reciprocal"),
    "named epsilon": (lambda: ji.transport.sinkhorn(jnp.ones((2, 2)), epsilon="1"), TypeError,
                      "'1'"),
    "NaN cost": (lambda: ji.transport.sinkhorn(jnp.full((2, 2), jnp.nan), epsilon=1.0), ValueError,
                 "NaN"),
    "no partner": (lambda: ji.transport.sinkhorn(
        jnp.array([[1.0, 1.0], [jnp.inf, jnp.inf]]), epsilon=1.0), ValueError, "row 1"),
    "monitor": (lambda: ji.fixed_point(identity, ONE, monitor=3), TypeError, "record.*int"),
    "named adjoint": (lambda: ji.fixed_point(identity, ONE, adjoint="implicit"), TypeError,
                      "implicit.*str"),
    "matvec": (lambda: linear.cg()(lambda v: v[:1], ONE), TypeError, r"\[2\].*\[1\]"),
    "another state": (lambda: ji.fixed_point(identity, ONE, resume=ji.fixed_point(
        identity, jnp.ones(3)).state), TypeError, r"resume.*\[2\].*\[3\]"),
    "equations": (lambda: ji.attach_implicit(lambda x: x[:1], ONE), TypeError, r"\[2\].*\[1\]"),
    "empty cost": (lambda: ji.transport.sinkhorn(jnp.zeros((0, 3)), epsilon=1.0), ValueError,
                   r"\(0, 3\)"),
    "empty cloud": (lambda: ji.transport.sinkhorn_divergence(
        jnp.zeros((0, 2)), jnp.ones((3, 2)), epsilon=1.0), ValueError, r"\(0, 3\)"),
    "empty weights": (lambda: ji.transport.mirror_sinkhorn(
        lambda p: p, ONE[:0], ONE[:0], bound=1.0, max_steps=2), ValueError, r"\(0,\)"),
    "empty scores": (lambda: ji.transport.swav_assignments(jnp.zeros((0, 3))), ValueError,
                     r"\(0, 3\)"),
    "no rows": (lambda: ji.recurrence.solve_recurrence(
        lambda s, x: s, ONE, jnp.zeros((0, 2))), ValueError, "T = 0"),
    "no causal rows": (lambda: ji.recurrence.solve_causal(identity, jnp.zeros((0, 2))),
                       ValueError, r"\(0, 2\)"),
    "no tasks": (lambda: ji.bilevel.implicit_maml(
        lambda y, t: 0.0, lambda y, t: 0.0, ONE, jnp.zeros((0, 2))), ValueError, r"\(0, 2\)"),
    "no steps": (lambda: ji.diffusion.linear_beta_schedule(0), ValueError, "0"),
    "noise rows": (lambda: ji.diffusion.sample(SAMPLER, MODEL, ONE, noise=jnp.ones((3, 2))),
                   ValueError, r"\(5, 2\).*\(3, 2\)"),
    "no key": (lambda: ji.diffusion.sample(SAMPLER, MODEL, ONE), ValueError, "pass a key"),
    "whole numbers": (lambda: ji.diffusion.sample(SAMPLER, MODEL, jnp.arange(2)), TypeError,
                      "int32"),
    "warm start": (lambda: ji.bilevel.hypergradient(
        lambda x, y: jnp.sum(y), lambda x, y: jnp.sum(y**2), 1.0, ONE, v_init={"a": ONE}),
        TypeError, "v_init.*structure"),
    "sparse k": (lambda: ji.operators.projection_sparse_simplex(ONE, 3), ValueError, "3"),
    "apply axis": (lambda: ji.transport.sinkhorn(
        jnp.ones((2, 2)), epsilon=1.0, method="log").apply(ONE, axis=2),
                   ValueError, "2"),
}


@pytest.mark.parametrize("name", CASES)
def test_eager_error(name):
    call, kind, pattern = CASES[name]
    with pytest.raises(kind, match=pattern):
        call()


TRACED = {
    "NaN x0": lambda bad: ji.fixed_point(lambda x: 0.5 * x, bad * ONE),
    "rtol": lambda bad: ji.fixed_point(
        lambda x: 0.5 * x + 1, ONE, stop=ji.tolerance(rtol=bad, atol=1e-3)),
    "epsilon": lambda bad: ji.transport.sinkhorn(jnp.ones((2, 2)), epsilon=bad).solve,
    "weights": lambda bad: ji.transport.sinkhorn(
        jnp.ones((2, 2)), jnp.stack([bad, 1 - bad]), epsilon=1.0).solve,
    "mass": lambda bad: ji.transport.sinkhorn(
        jnp.ones((2, 2)), jnp.stack([jnp.abs(jnp.nan_to_num(bad)) + 3, 1.0]), epsilon=1.0).solve,
    "cost": lambda bad: ji.transport.sinkhorn(jnp.ones((2, 2)) * bad * jnp.inf, epsilon=1.0).solve,
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_status_under_jit(name, bad):
    if name == "NaN x0" and bad == -1.0:
        bad = np.inf
    solution = jax.jit(TRACED[name])(jnp.float32(bad))
    assert solution.status == Status.BAD_INPUT, solution.message()
    assert not solution.converged


EMPTY = {
    "fixed_point": lambda: ji.fixed_point(lambda x: 0.5 * x, jnp.zeros(0)),
    "anderson": lambda: ji.fixed_point(
        lambda x: jax.tree.map(lambda leaf: 0.5 * leaf, x), {"a": jnp.zeros(0), "b": ONE},
        solver=ji.anderson(3)),
    "solve_many": lambda: ji.solve_many(lambda x, q: q * x, jnp.zeros((0, 3)), jnp.ones(0)),
    "over_mesh": lambda: ji.over_mesh(lambda x: ji.solve_many(identity, x), jax.make_mesh(
        (8,), ("d",)), "d")(jnp.zeros((0, 3))),
    "vmap": lambda: jax.vmap(lambda x: ji.fixed_point(identity, x))(jnp.zeros((0, 3))),
    "sinkhorn_many": lambda: ji.transport.sinkhorn_many(jnp.zeros((0, 3, 3)), epsilon=1.0).solve,
    "recurrence": lambda: ji.recurrence.solve_recurrence(
        lambda s, x: s + x, jnp.zeros(0), jnp.zeros((4, 0))),
    "sample_parallel": lambda: ji.diffusion.sample_parallel(
        SAMPLER, MODEL, jnp.zeros(0), jax.random.key(0)).solve,
    "solve_inner": lambda: ji.bilevel.solve_inner(
        lambda x, y: jnp.sum(y**2) + x, jnp.zeros(0), 1.0),
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_solve_is_solved(name):
    """Vectors without entries and batches without problems: no error, no wait, CONVERGED."""
    solution = EMPTY[name]()
    assert np.all(np.asarray(solution.status) == Status.CONVERGED)
    assert np.all(np.asarray(solution.steps) <= 8)
