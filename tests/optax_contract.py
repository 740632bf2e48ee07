"""What optax expects of any transformation: shared by the tests of optimisers and of solvers.

All but `check_init` and `check_injected` look at shapes and dtypes only, so nothing is compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

VALUE = np.float16(1.0)  # a loss in another precision than everything else
MATRIX = np.array([[1.0, -2.0, 0.5], [0.3, 1.5, -1.0]], np.float32)
TREE = {"w": MATRIX, "b": np.array([0.5, -0.2], np.float32), "scalar": np.float32(0.7),
        "nothing": {}, "none": None, "empty": np.zeros((0, 3), np.float32)}
MATRICES = {"w": MATRIX, "v": MATRIX.T.copy(), "empty": np.zeros((0, 3), np.float32)}
KINDS = {"half": ("float16", "bfloat16"), "single": ("float32", "bfloat16"),
         "complex": ("complex64", "float32"), "double": ("float64", "float32", "bfloat16")}


def cast(tree, kinds):
    """The tree with its leaves in these dtypes, in turn."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([jnp.asarray(leaf, kinds[i % len(kinds)])
                                for i, leaf in enumerate(leaves)])


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def loop_types(tree):
    """With what makes jit compile a second time, or a loop refuse its carry."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


def stepped(optimizer, tree, promotion="strict", **extra):
    """Types of updates, and of the state before and after one; the gradient is the tree."""
    optimizer = optax.with_extra_args_support(optimizer)
    with jax.numpy_dtype_promotion(promotion):
        state = jax.eval_shape(optimizer.init, tree)
        updates, new = jax.eval_shape(
            lambda g, s, p: optimizer.update(g, s, p, value=VALUE, **extra), tree, state, tree)
    return types(updates), loop_types(state), loop_types(new)


def check_dtypes(make, tree):
    """Updates like gradients, and a state that keeps its types, in every mixture of precisions."""
    for name, kinds in KINDS.items():
        with jax.enable_x64(name == "double"):
            params = cast(tree, kinds)
            updates, before, after = stepped(make(), params, something_unexpected=1)
            assert updates == types(params), (name, updates)
            assert before == after, (name, before, after)


def check_wrappers(make, tree):
    """MultiSteps, masked, partition, chain, and a tree map over each of their states."""
    params = cast(tree, KINDS["single"])
    matrices = jax.tree.map(lambda leaf: leaf.ndim == 2 and leaf.shape[0] == 2, params)
    labels = jax.tree.map(lambda leaf: "ours" if leaf else "other", matrices)
    several = optax.MultiSteps(make(), 4)
    wrapped = {
        "masked": optax.masked(make(), matrices),
        "partition": optax.partition({"ours": make(), "other": optax.sgd(0.1)}, labels),
        "chain": optax.chain(optax.clip_by_global_norm(1.0), make(), optax.scale(0.5)),
        "MultiSteps": optax.GradientTransformationExtraArgs(several.init, several.update),
    }
    for name, optimizer in wrapped.items():
        updates, before, after = stepped(optimizer, params, "standard")  # optax mixes dtypes
        assert before == after, (name, before, after)
        assert updates == types(params) or name == "chain", (name, updates)
        state = jax.eval_shape(optimizer.init, params)
        assert loop_types(optax.tree.map_params(optimizer, lambda leaf: leaf, state)) == before


def check_map_params(make, tree):
    """Trees like the parameters are found: something else can be put at their places."""
    optimizer = make()
    state = jax.eval_shape(optimizer.init, tree)
    assert types(optax.tree.map_params(optimizer, lambda leaf: leaf, state)) == types(state)
    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), tree)
    named = optax.tree.map_params(
        optimizer, lambda _, name: name, state, names, transform_non_params=lambda _: "other",
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
    found = set(jax.tree.leaves(named))
    assert found <= {"other", *jax.tree.leaves(names)}
    # Either there is nothing like the parameters, or all of them are there.
    assert found <= {"other"} or found >= set(jax.tree.leaves(names))


def check_empty(make):
    """A tree without a single array: an optimiser of a frozen part, a test of a wrapper."""
    for tree in ({}, {"frozen": None}, [{}, ()]):
        optimizer = optax.with_extra_args_support(make())
        state = optimizer.init(tree)
        updates, new = optimizer.update(tree, state, tree, value=VALUE)
        assert updates == tree and jax.tree.structure(new) == jax.tree.structure(state)


def check_missing(make, tree):
    """Integers have no state, whatever stands for their gradient; None for a float is a zero."""
    floats = cast(tree, KINDS["single"])
    params = {**floats, "table": jnp.arange(3)}
    optimizer = optax.with_extra_args_support(make())
    state = jax.eval_shape(optimizer.init, params)
    for none in (None, np.zeros(3, jax.dtypes.float0), jnp.zeros(3, jnp.int32)):
        for first in (floats["w"], None):
            def step(state, none=none, first=first):
                grads = {**floats, "table": none, "w": first}
                updates, new = optimizer.update(grads, state, params, value=VALUE)
                assert updates.pop("table") is none and (updates["w"] is None) == (first is None)
                return updates, new

            updates, new = jax.eval_shape(step, state)
            assert types(new) == types(state)
    assert types(optax.tree.map_params(optimizer, lambda leaf: leaf, state)) == types(state)


def check_init(make, tree):
    """Shapes are enough; and no buffer twice, for donating it twice is an error."""
    optimizer, params = make(), jax.tree.map(jnp.asarray, tree)
    shapes = jax.eval_shape(optimizer.init, params)
    abstract = optimizer.init(jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params))
    assert types(abstract) == types(shapes)
    held = jax.tree.leaves((params, optimizer.init(params)))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in held if leaf.size]
    assert len(set(buffers)) == len(buffers), f"{len(buffers) - len(set(buffers))} shared buffers"


def check_injected(factory, tree, static=(), **options):
    """The same updates with every number traced, whatever precision the numbers are in."""
    plain = optax.with_extra_args_support(factory(**options))
    injected = optax.inject_hyperparams(factory, static)(**options)
    for kinds in (("bfloat16",), ("float64", "float32")):  # the numbers take the widest of them
        with jax.enable_x64("float64" in kinds):
            promotion = "strict" if len(kinds) == 1 else "standard"  # of the numbers, by optax
            updates, before, after = stepped(injected, cast(tree, kinds), promotion)
            assert updates == types(cast(tree, kinds))
            assert before.inner_state == after.inner_state, (kinds, before, after)
    state = jax.eval_shape(injected.init, tree)
    assert types(optax.tree.map_params(injected, lambda leaf: leaf, state)) == types(state)

    @jax.jit
    def both(tree):
        out = []
        for optimizer in (plain, injected):
            state, updates = optimizer.init(tree), []
            for factor in (1.0, -0.5):  # the second update depends on the first
                g = jax.tree.map(lambda leaf, factor=factor: factor * leaf, tree)
                update, state = optimizer.update(g, state, tree, value=VALUE)
                updates.append(update)
            out.append(updates)
        return out

    for a, b in zip(*map(jax.tree.leaves, both(tree)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def check_shardings(make, ndims=(1, 2, 3)):
    """On an explicit mesh of eight devices updates and states keep the types they began with."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    optimizer = optax.with_extra_args_support(make())
    cases = [((8,), jax.P("x")), ((16, 4), jax.P("x")), ((2, 8), jax.P(None, "x")),
             ((2, 8, 4), jax.P(None, "x"))]
    with jax.set_mesh(mesh):
        for shape, spec in cases:
            if len(shape) not in ndims:
                continue
            p = jnp.ones(shape, jnp.float16, out_sharding=jax.NamedSharding(mesh, spec))
            state = optimizer.init(p)
            seen = {}

            def look(g, s, p, seen=seen):
                updates, new = optimizer.update(g, s, p, value=VALUE)
                seen["updates"] = jax.tree.map(jax.typeof, updates)
                seen["state"] = jax.tree.map(jax.typeof, new)
                return updates

            jax.eval_shape(look, p, state, p)
            assert seen["updates"] == jax.typeof(p), (shape, spec, seen["updates"])
            before = jax.tree.map(jax.typeof, state)
            assert seen["state"] == before, (shape, spec, before, seen["state"])
