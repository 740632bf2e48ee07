"""What routings are measured by: linear programs, and the published rules of the biases."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse

from jaxiter.transport import loss_free_bias


def linear_program(scores, k):
    """The most that k experts a token are worth where all experts get as many, by HiGHS."""
    tokens, experts = scores.shape
    rows = scipy.sparse.vstack([
        scipy.sparse.kron(scipy.sparse.eye(tokens), np.ones((1, experts))),
        scipy.sparse.kron(np.ones((1, tokens)), scipy.sparse.eye(experts))]).tocsr()
    share = tokens * k / experts
    return -scipy.optimize.linprog(
        -scores.ravel().astype(float), A_eq=rows, b_eq=np.r_[[k] * tokens, [share] * experts],
        bounds=(0, 1)).fun


def steps_to_balance(scores, k, rate, rule, most):
    """Updates of `loss_free_bias` on one batch until the overload is below 5 percent, or None."""
    balance = loss_free_bias(rate, rule)
    experts = scores.shape[1]

    @jax.jit
    def update(state):
        indices = jax.lax.top_k(scores + state.bias, k)[1]
        load = jnp.zeros(experts).at[indices.ravel()].add(1)
        return balance.update(load, state), jnp.max(load) / jnp.mean(load) - 1

    state = balance.init(experts)
    for step in range(1, most + 1):
        state, overload = update(state)
        if overload <= 0.05:
            return step
    return None
