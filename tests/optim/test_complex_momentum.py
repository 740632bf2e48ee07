"""Complex momentum on a game."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter.optim import trace_complex


@pytest.mark.parametrize("angle, rate, decay, radius", [
    (np.pi / 16, 0.03, 0.9, 0.9963), (np.pi / 8, 0.1, 0.8, 0.9774),
    (np.pi / 4, 0.3, 0.7, 0.9461), (0.0, 0.1, 0.8, None)])
def test_complex_momentum_on_a_bilinear_game(angle, rate, decay, radius):
    """min_x max_y x y: the contraction per step is the published spectral radius; real: > 1."""
    optimizer = optax.chain(trace_complex(decay, float(angle)), optax.scale(-rate))

    def step(carry, _):
        game, state = carry
        updates, state = optimizer.update(jnp.stack([game[1], -game[0]]), state)
        game = game + updates
        return (game, state), jnp.log(jnp.linalg.norm(game))

    start = jnp.ones(2)
    size = jax.jit(lambda g: jax.lax.scan(
        step, (g, optimizer.init(g)), None, length=800)[1])(start)
    got = float(np.exp((size[-1] - size[400]) / 399))
    if radius is None:
        assert size[200] > size[100] + 1
    else:
        np.testing.assert_allclose(got, radius, atol=1e-3)
    with pytest.raises(ValueError, match="decay must be in"):
        trace_complex(1.0)
