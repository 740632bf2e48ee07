"""Three steps of every transformation on two tiny problems, to six decimals in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_breast_cancer

import jaxiter as ji
from jaxiter.optim import (
    a_dog,
    alr,
    cautious,
    evaluation_params,
    grams,
    mars_correction,
    nag_gs,
    opt_amsgrad,
    power_sgd,
    scale_by_shampoo,
    u_dog,
)
from jaxiter.optim.muon import polar_svd

A = np.array([[3.0, 1.0], [1.0, 2.0]])
Q_BEST = np.array([0.6, -0.8])
M_BEST = np.array([[0.6, 0.0], [-0.8, 1.0]])


def q(x):
    return (x - Q_BEST) @ A @ (x - Q_BEST) / 2


def m(w):
    return jnp.trace((w - M_BEST).T @ A @ (w - M_BEST)) / 2


def path(optimizer, loss, start, steps=3, readout=None, promotion="strict"):
    """Points after each step, jitted as one program."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(grad, state, x, value=value)
        x = optax.apply_updates(x, updates)
        return (x, state), (x if readout is None else readout(state, x))

    with jax.numpy_dtype_promotion(promotion):
        return jax.jit(lambda x: jax.lax.scan(
            step, (x, optimizer.init(x)), None, length=steps)[1])(jnp.asarray(start))


CASES_Q = {
    "alr mag": (lambda: alr("mag"),
                "0.496000 0.328000 0.405384 0.179757 0.357062 0.085541"),
    "alr smag": (lambda: alr("mag", c=0.5, eta_max=0.1),
                 "0.700000 0.600000 0.397906 0.153725 0.309281 -0.001725"),
    "alr hb .9": (lambda: alr("hb"),
                  "0.496000 0.328000 0.119482 -0.073514 -0.015246 -0.712493"),
    "alr hb .5": (lambda: alr("hb", beta=0.5),
                  "0.496000 0.328000 0.206629 -0.106558 0.179141 -0.563090"),
    "nag_gs": (lambda: nag_gs(0.5),
               "0.727273 0.636364 0.422287 0.173998 0.236065 -0.219751"),
    "nag_gs constant": (lambda: nag_gs(0.5, constant_gamma=True),
                        "0.750000 0.666667 0.465278 0.243056 0.269676 -0.131366"),
    "a_dog": (lambda: a_dog(0.1), "0.855147 0.806863 0.767461 0.678645 0.656534 0.503675"),
    "cautious mean": (lambda: cautious(optax.adam(1.0)),
                      "0 0 0 -1.661195 0.349876 -1.661195 0.694674 -1.622994 1.049856 -1.433883"),
    "cautious paper": (lambda: cautious(optax.adam(1.0), "paper"),
                       "0.333333 0.333333 -0.165448 -0.288120 -0.165448 -1.044366 0.061503 "
                       "-1.044366 0.453237 -1.044366"),
    "grams": (lambda: grams(1.0, eps=1e-8),
              "0 0 0.400219 -0.830598 0.578699 -0.230221 0.344075 -0.856924 0.402453 -0.376230"),
    "opt_amsgrad last": (lambda: opt_amsgrad(0.1),
                         "0.082940 0.082940 0.470715 0.002103 0.243781 -0.450666"),
    "opt_amsgrad rmpe": (lambda: opt_amsgrad(0.1, predictor="rmpe", history=2),
                         "0.082940 0.082940 0.470715 0.002103 0.256819 -0.447942"),
    "anderson": (lambda: optax.chain(optax.sgd(0.2), ji.anderson(
        2, period=1, safeguard=None, ridge=0.0)),
                 "0.400000 0.200000 0.285517 -0.315172 0.600000 -0.800000"),
    "anderson 1": (lambda: optax.chain(optax.sgd(0.2), ji.anderson(
        1, period=1, safeguard=None, ridge=0.0)),
                   "0.400000 0.200000 0.285517 -0.315172 0.387200 -0.496000 0.587624 -0.798949"),
    "halpern": (lambda: optax.chain(optax.sgd(0.2), ji.halpern()),
                "0.700000 0.600000 0.573333 0.346667 0.520000 0.170000 0.499200 0.038400"),
}


def promotion(name):
    """optax.adam mixes dtypes; nothing of ours does."""
    return "standard" if name.startswith(("cautious", "grams")) else "strict"


def numbers(text):
    return np.array([float(part) for part in text.split()])


@pytest.mark.parametrize("name", CASES_Q)
def test_quadratic(name, x64):
    make, expected = CASES_Q[name]
    expected = numbers(expected).reshape(-1, 2)
    got = path(make(), q, np.ones(2), len(expected), promotion=promotion(name))
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("name", CASES_Q)
def test_quadratic_in_float32(name):
    make, expected = CASES_Q[name]
    expected = numbers(expected).reshape(-1, 2)

    def loss(x):
        return (x - Q_BEST.astype(np.float32)) @ A.astype(np.float32) @ (
            x - Q_BEST.astype(np.float32)) / 2

    got = path(make(), loss, np.ones(2, np.float32), len(expected), promotion=promotion(name))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)


def exact_muon():
    """MARS-M with the exact polar factor in place of Newton-Schulz."""
    return optax.chain(
        optax.ema(0.95, debias=False),
        optax.stateless(lambda u, _: 0.2 * 2**0.5 * polar_svd(u)), optax.scale(-3.0))


def raw_shampoo(power):
    return optax.chain(scale_by_shampoo(power, b1=0.0, b2=None, every=1, damping=1e-30),
                       optax.scale(-0.1))


CASES_M = {
    "mars": (lambda: optax.chain(mars_correction(), exact_muon()), """
        0.766891 0.184120 0.184120 1.233109  0.099012 0.707510 -0.339271 0.565230
        0.122578 -0.140691 -1.187471 0.541664"""),
    "mars no clip": (lambda: optax.chain(mars_correction(clip=None), exact_muon()), """
        0.766891 0.184120 0.184120 1.233109  0.533783 -0.631760 -0.631760 1.466217
        -0.064313 -0.029862 -1.233658 0.868121"""),
    "mars gamma 0": (lambda: optax.chain(mars_correction(gamma=0.0), exact_muon()), """
        0.766891 0.184120 0.184120 1.233109  0.533783 -0.631760 -0.631760 1.466217
        -0.021278 0.010040 -1.273560 0.911156"""),
    "shampoo": (lambda: raw_shampoo(0.25), """
        0.972528 0.903848 0.903848 1.027472  0.953429 0.839433 0.837929 1.045611
        0.938014 0.788679 0.785161 1.059736"""),
    "shampoo^2": (lambda: raw_shampoo(0.5), """
        1.065734 0.737063 0.802797 1.197203  1.099692 0.574494 0.677027 1.320267
        1.117592 0.460777 0.584744 1.405396"""),
}


@pytest.mark.parametrize("name", CASES_M)
def test_matrix(name, x64):
    make, expected = CASES_M[name]
    got = path(make(), m, np.ones((2, 2)))
    np.testing.assert_allclose(got.reshape(3, 4), numbers(expected).reshape(3, 4), atol=2e-6)


def test_average_of_a_dog(x64):
    got = path(a_dog(0.1), q, np.ones(2), readout=evaluation_params)
    np.testing.assert_allclose(got.ravel(), numbers(
        "0.855147 0.806863 0.811304 0.742754 0.741843 0.635595"), atol=2e-6)


def test_average_of_u_dog(x64):
    """Two gradients per step: the average after calls 1, 3, 5."""
    got = path(u_dog(0.1), q, np.ones(2), steps=6, readout=evaluation_params)
    np.testing.assert_allclose(got[::2].ravel(), numbers(
        "0.855147 0.806863 0.784851 0.693931 0.658868 0.488199"), atol=2e-6)


def test_power_sgd_of_two_workers(x64):
    """Gradients G + D and G - D, rank 1, error feedback; q starts at (1, 1)."""
    optimizer = power_sgd("workers", rank=1, min_compression=0.0)
    sides = jnp.array([1.0, -1.0])

    def step(carry, _):
        w, state = carry
        grad = jax.grad(m)(w)
        out = jax.vmap(lambda side, error: optimizer.update(
            grad + side * jnp.diag(jnp.array([0.5, -0.5])), state._replace(error=error)),
            in_axes=(0, 0), out_axes=(0, 0), axis_name="workers")(sides, state.error)
        updates, new = out
        w = w - 0.1 * updates[0]
        state = new._replace(count=new.count[0], q=new.q[0])
        return (w, state), w

    w = jnp.ones((2, 2))
    state = optimizer.init(w)._replace(q=jnp.ones((2, 1)), error=jnp.zeros((2, 2, 2)))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.ndim else leaf, state)
    got = jax.jit(lambda w, s: jax.lax.scan(step, (w, s), None, length=3)[1])(w, state)
    np.testing.assert_allclose(got.reshape(3, 4), numbers("""
        0.626230 0.773770 0.688525 0.811475  0.414266 0.699872 0.391845 0.708042
        0.339545 0.708292 0.118175 0.738880""").reshape(3, 4), atol=2e-6)


def test_polyak_without_momentum_is_the_one_of_optax(x64):
    ours = path(alr("mag", beta=0.0), q, np.ones(2), 6)
    theirs = path(optax.polyak_sgd(max_learning_rate=float("inf")), q, np.ones(2), 6)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_every_alr_step_nears_the_solution(x64):
    """Convex, exact f*: |x+ - x*|^2 <= |x - x*|^2 - eta^2 |d|^2."""
    points = np.concatenate([np.ones((1, 2)), path(alr("mag"), q, np.ones(2), 30)])
    far = np.sum((points - Q_BEST) ** 2, axis=1)
    moved = np.sum(np.diff(points, axis=0) ** 2, axis=1)
    assert np.all(far[1:] <= far[:-1] - moved + 1e-12)


def test_anderson_around_descent_is_the_solver(x64):
    """On the breast_cancer map: the transformation in a training loop against `fixed_point`."""
    features, labels = load_breast_cancer(return_X_y=True)
    features = np.asarray(features)
    features = (features - features.mean(0)) / features.std(0)
    signed = features * (2.0 * np.asarray(labels) - 1)[:, None]
    rate = 4 * len(signed) / np.linalg.eigvalsh(signed.T @ signed)[-1]
    rows = jnp.asarray(signed)

    def loss(w):
        return jnp.mean(jnp.logaddexp(0.0, -rows @ w)) + 5e-4 * w @ w

    got = path(optax.chain(optax.sgd(rate), ji.anderson()), loss, np.zeros(30), 50)
    solver = jax.jit(lambda w: ji.fixed_point(
        lambda w: w - rate * jax.grad(loss)(w), w, solver=ji.anderson(), max_steps=50,
        stop=ji.tolerance(rtol=0, atol=1e-300)).value)(jnp.zeros(30))
    # 50 evaluations of the map are 49 updates and the residual of the last point.
    np.testing.assert_allclose(got[-2], solver, atol=1e-6)
