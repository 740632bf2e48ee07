"""Problems and the numpy reference that the tests of Sinkhorn methods share."""

import numpy as np
import scipy.spatial.distance
import scipy.special

import jaxiter as ji

TIGHT = ji.tolerance(rtol=0, atol=1e-11)


def clouds(n, dimension=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(n, dimension)), rng.uniform(size=(n, dimension))


def weights(n, m, seed=1):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))


def reference(cost, a, b, epsilon, rho_a=np.inf, rho_b=np.inf, steps=20_000):
    """(f, g) in the "ab" convention, by the textbook iteration in the log domain."""
    damp_a, damp_b = (1 / (1 + epsilon / rho) for rho in (rho_a, rho_b))
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(steps):
        old = g
        f = -damp_a * epsilon * scipy.special.logsumexp((g - cost) / epsilon, b=b[None], axis=1)
        g = -damp_b * epsilon * scipy.special.logsumexp(
            (f[:, None] - cost) / epsilon, b=a[:, None], axis=0)
        if np.max(np.abs(g - old)) < 1e-13:
            break
    return f, g
