"""What optax's own tests ask of a transformation, asked of every one of ours."""

import jax
import jax.numpy as jnp
import optax
import pytest
from tests import optax_contract as contract

from jaxiter.optim import (
    a_dog,
    alr,
    cautious,
    cautious_momentum,
    grams,
    mars_correction,
    mars_m,
    nag_gs,
    opt_amsgrad,
    power_sgd,
    record_gradient_norm,
    scale_by_shampoo,
    sign_agreement,
    trace_complex,
    u_dog,
)

MAKERS = {
    "alr mag": alr,
    "alr hb": lambda: alr("hb"),
    "nag_gs": lambda: nag_gs(0.1),
    "nag_gs stored": lambda: nag_gs(0.1, accumulator_dtype=jnp.bfloat16),
    "a_dog": a_dog,
    "u_dog": u_dog,
    "cautious": lambda: cautious(optax.adam(0.1)),
    "sign": lambda: sign_agreement(optax.adam(0.1), "gradient_sign"),
    "cautious_momentum": cautious_momentum,
    "grams": lambda: grams(0.1),
    "mars": mars_correction,
    "mars_m": lambda: mars_m(0.1),
    "opt_amsgrad": lambda: opt_amsgrad(0.1),
    "opt_amsgrad rmpe": lambda: opt_amsgrad(0.1, predictor="rmpe"),
    "opt_amsgrad own": lambda: opt_amsgrad(
        0.1, predictor=lambda rows, count: jax.tree.map(lambda leaf: leaf[-1], rows)),
    "shampoo": lambda: scale_by_shampoo(graft=optax.scale_by_adam()),
    "power_sgd": lambda: power_sgd(None, 1, 0.0),
    "trace_complex": trace_complex,
    "norms": lambda: record_gradient_norm(5, order=1),
}
INJECTED = {
    "alr mag": (alr, {}, ()),
    "alr hb": (alr, {"kind": "hb"}, ()),
    "nag_gs": (nag_gs, {"learning_rate": 0.1}, ()),
    "a_dog": (a_dog, {}, ()),
    "u_dog": (u_dog, {}, ()),
    "cautious": (cautious, {"inner": optax.sgd(0.1)}, ()),
    "cautious_momentum": (cautious_momentum, {}, ()),
    "grams": (grams, {"learning_rate": 0.1}, ()),
    "mars": (mars_correction, {}, ()),
    "mars_m": (mars_m, {"learning_rate": 0.1}, ()),
    "opt_amsgrad": (opt_amsgrad, {"learning_rate": 0.1}, ()),
    "opt_amsgrad rmpe": (opt_amsgrad, {"learning_rate": 0.1, "predictor": "rmpe"}, ("history",)),
    "shampoo": (scale_by_shampoo, {}, ("block_size",)),
    "power_sgd": (power_sgd, {"axis_name": None}, ("rank", "min_compression", "start_step")),
    "trace_complex": (trace_complex, {}, ()),
    "norms": (record_gradient_norm, {"total": 5}, ("total", "order")),
}


def tree_of(name):
    return contract.MATRICES if name == "shampoo" else contract.TREE


@pytest.mark.parametrize("name", MAKERS)
def test_types_and_wrappers(name):
    make, tree = MAKERS[name], tree_of(name)
    contract.check_dtypes(make, tree)
    contract.check_wrappers(make, tree)
    contract.check_map_params(make, tree)
    contract.check_shardings(make, (2,) if name == "shampoo" else (1, 2, 3))


@pytest.mark.parametrize("name", MAKERS)
def test_init_and_empty_trees(name):
    contract.check_empty(MAKERS[name])
    contract.check_missing(MAKERS[name], tree_of(name))
    contract.check_init(MAKERS[name], tree_of(name))


@pytest.mark.parametrize("name", INJECTED)
def test_injected_numbers(name):
    factory, options, static = INJECTED[name]
    contract.check_injected(factory, tree_of(name), static, **options)
