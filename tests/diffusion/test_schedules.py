"""Tables of a schedule between their points."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion.schedules import between


def test_tables_between_their_points_hold_no_loop():
    """As numpy's interpolation, beyond the ends and at a repeated point too; nothing searches."""
    grid, one, two = np.array([0.0, 1, 1, 4]), np.array([3.0, 0, 5, 1]), np.arange(4.0)
    x = jnp.linspace(-1, 5, 25, dtype=jnp.float32)
    for values, table in zip(between(x, grid, one, two), (one, two), strict=True):
        np.testing.assert_allclose(values, np.interp(x, grid, table), atol=1e-6)
    assert "while" not in str(jax.make_jaxpr(lambda x: between(x, grid, one))(x[0]))
    assert np.isnan(between(jnp.float32(jnp.nan), grid, one)[0])
