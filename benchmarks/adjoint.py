"""Gradients of fixed points: error, time and compile time against unrolling, jaxopt, optimistix.

`python benchmarks/adjoint.py` writes results/adjoint.json.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import numpy as np
import optimistix as optx
from jaxopt.linear_solve import solve_bicgstab

import jaxiter as ji
from harness import compile_all, save, show, time_all
from jaxiter import linear
from jaxiter.implicit import trusted

TOL, LIMIT = 1e-4, 100


def deq(z: Any, w: Any, injected: Any) -> Any:
    return jnp.tanh(z @ w + injected)


def forward_functions(z0: Any) -> dict[str, Callable]:
    """Solvers of the DEQ layer as functions of (w, injected)."""
    def ours(adjoint: Any) -> Callable:
        return lambda w, u: ji.fixed_point(
            deq, z0, w, u, adjoint=adjoint, max_steps=LIMIT,
            stop=ji.tolerance(rtol=0, atol=TOL)).value

    default = jaxopt.FixedPointIteration(deq, tol=TOL, maxiter=LIMIT)
    other = jaxopt.FixedPointIteration(
        deq, tol=TOL, maxiter=LIMIT, implicit_diff_solve=solve_bicgstab)
    plain = optx.FixedPointIteration(rtol=0.0, atol=TOL, norm=jnp.linalg.norm)

    # Its default adjoint forms the 16,384 x 16,384 Jacobian; lineax's BiCGStab raises a
    # breakdown inside the graph here.
    def optimistix(w: Any, u: Any) -> Any:
        return optx.fixed_point(
            lambda z, args: deq(z, *args), plain, z0, (w, u), max_steps=LIMIT, throw=False,
            adjoint=optx.ImplicitAdjoint(lx.GMRES(rtol=1e-5, atol=1e-5))).value

    return {
        "jaxiter implicit": ours(ji.implicit()),
        "jaxiter implicit, vjp": ours(ji.implicit(mode="vjp")),
        "jaxiter implicit, gmres": ours(ji.implicit(linear.gmres())),
        "jaxiter neumann(10)": ours(ji.neumann(10)),
        "jaxiter one_step": ours(ji.one_step()),
        "jaxiter unrolled": ours(ji.unrolled()),
        "jaxopt implicit (default)": lambda w, u: default.run(z0, w, u).params,
        "jaxopt implicit, bicgstab": lambda w, u: other.run(z0, w, u).params,
        "optimistix implicit, gmres": optimistix,
    }


def layer() -> list[dict]:
    keys = jax.random.split(jax.random.key(0), 3)
    w = 0.9 * jax.random.normal(keys[0], (256, 256)) / 16
    u = jax.random.normal(keys[1], (256, 256)) / 16
    injected = jax.random.normal(keys[2], (64, 256)) @ u
    forwards = forward_functions(jnp.zeros((64, 256)))

    def loss(solve: Callable) -> Callable:
        return lambda w, u: jnp.sum(solve(w, u) ** 2)

    gradients = {name: jax.grad(loss(f), argnums=(0, 1)) for name, f in forwards.items()}
    forward, forward_compile = compile_all(forwards, w, injected)
    backward, backward_compile = compile_all(gradients, w, injected)
    everything = {f"F {n}": f for n, f in forward.items()} | {
        f"B {n}": f for n, f in backward.items()}
    times = time_all(everything, w, injected, repeats=15)
    with jax.enable_x64(True):
        z = jnp.zeros((64, 256))
        def exact(w: Any, u: Any) -> Any:
            return jnp.sum(jax.lax.scan(
                lambda z, _: (deq(z, w, u), None), z, length=300)[0] ** 2)
        truth = jax.jit(jax.grad(exact, argnums=(0, 1)))(
            jnp.asarray(w, jnp.float64), jnp.asarray(injected, jnp.float64))
        truth = [np.asarray(t) for t in truth]
    rows = []
    for name in forwards:
        grads = [np.asarray(g, np.float64) for g in backward[name](w, injected)]
        error = np.sqrt(sum(np.sum((g - t) ** 2) for g, t in zip(grads, truth, strict=True))
                        / sum(np.sum(t**2) for t in truth))
        extra = (times[f"B {name}"] - times[f"F {name}"]) / times[f"F {name}"]
        rows.append({
            "method": name, "relative_error": float(error),
            "forward_ms": float(np.median(times[f"F {name}"]) * 1e3),
            "gradient_ms": float(np.median(times[f"B {name}"]) * 1e3),
            "backward_over_forward": float(np.median(extra)),
            "forward_compile_s": forward_compile[name],
            "gradient_compile_s": backward_compile[name],
        })
    show(rows)
    return rows


def conditioning() -> list[dict]:
    """Relative gradient error in float32 on x = M x + c, M symmetric with norm q."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    weights = rng.normal(size=200)
    rows = []
    for q in (0.9, 0.99, 0.999, 0.9999):
        m = basis @ np.diag(np.linspace(-q, q, 200)) @ basis.T
        single = np.asarray(m, np.float32)
        exact = np.linalg.solve(np.eye(200) - single.T.astype(np.float64), weights)
        start = jnp.asarray(
            np.linalg.solve(np.eye(200) - single.astype(np.float64), np.ones(200)), jnp.float32)
        matrix, w = jnp.asarray(single), jnp.asarray(weights, jnp.float32)

        def step(x: Any, c: Any, matrix: Any = matrix) -> Any:
            return matrix @ x + c

        peer = jaxopt.FixedPointIteration(step, maxiter=3)
        functions = {
            "jaxiter implicit": lambda c, s=start, f=step: ji.fixed_point(
                f, s, c, max_steps=3).value,
            "jaxiter implicit, gmres": lambda c, s=start, f=step: ji.fixed_point(
                f, s, c, max_steps=3, adjoint=ji.implicit(linear.gmres(50))).value,
            "jaxopt implicit (default)": lambda c, s=start, p=peer: p.run(s, c).params,
        }
        for name, solve in functions.items():
            gradient = jax.jit(jax.grad(lambda c, f=solve, w=w: w @ f(c)))(jnp.ones(200))
            error = np.linalg.norm(np.asarray(gradient) - exact) / np.linalg.norm(exact)
            rows.append({"q": q, "method": name, "relative_error": float(error)})
    show(rows)
    return rows


def system(size: int, kind: str, q: float) -> tuple[Callable, Any]:
    """`v -> v - J v` and a right-hand side; J of spectral radius q: symmetric, normal, or not."""
    rng = np.random.default_rng(size)
    b = jnp.asarray(rng.normal(size=size), jnp.float32)
    if size > 1000:  # bands
        wheel = jnp.asarray(rng.uniform(0.3, 1, size), jnp.float32)
        products = {
            "symmetric": lambda v: q / 2 * (jnp.roll(v, 1) + jnp.roll(v, -1)),
            "disc": lambda v: q * wheel * jnp.roll(v, 1),
            "non-normal": lambda v: q * 0.6 * v + 0.4 * jnp.pad(v[1:], (0, 1))}
        return lambda v: v - products[kind](v), b
    if kind == "symmetric":
        basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
        a = (basis * np.linspace(-q, q, size)) @ basis.T
    elif kind == "disc":
        a = rng.normal(size=(size, size))
        a *= q / np.abs(np.linalg.eigvals(a)).max()
    else:
        a = np.triu(rng.normal(size=(size, size)), 1) / np.sqrt(size)
        a += np.diag(rng.uniform(-q, q, size))
    a = jnp.asarray(a, jnp.float32)
    return lambda v: v - a @ v, b


def ours(matvec: Callable, b: Any) -> Any:
    """As the adjoint uses it: a number only where the solve is trusted."""
    out = linear.bicgstab()(matvec, b)
    return jnp.where(trusted(out, float(jnp.finfo(b.dtype).eps)), out.value, jnp.nan)


def jaxopts(matvec: Callable, b: Any) -> Any:
    return solve_bicgstab(matvec, b, tol=1e-6)


def lineaxs(matvec: Callable, b: Any) -> Any:
    operator = lx.FunctionLinearOperator(matvec, jax.ShapeDtypeStruct(b.shape, b.dtype))
    return lx.linear_solve(operator, b, lx.BiCGStab(rtol=1e-6, atol=0.0), throw=False).value


def backward() -> list[dict]:
    """The linear solve alone: seconds, compile seconds, true relative residual in float64."""
    rows = []
    contenders = {"jaxiter": ours, "jaxopt bicgstab": jaxopts, "lineax BiCGStab": lineaxs}
    for size in (4, 100, 10**4, 10**6):
        for kind in ("symmetric", "disc", "non-normal"):
            for q in (0.5, 0.9, 0.99):
                matvec, b = system(size, kind, q)
                compiled, seconds = compile_all(
                    {name: partial(solve, matvec) for name, solve in contenders.items()}, b)
                times = time_all(compiled, b, repeats=5 if size > 10**5 else 15)
                with jax.enable_x64(True):
                    rest = {name: np.asarray(jnp.asarray(b, jnp.float64) - matvec(
                        jnp.asarray(np.asarray(run(b)), jnp.float64)))
                        for name, run in compiled.items()}
                for name in contenders:
                    ratio = times[name] / times["jaxopt bicgstab"]
                    rows.append({
                        "size": size, "kind": kind, "q": q, "method": name,
                        "microseconds": float(np.median(times[name]) * 1e6),
                        "over_jaxopt": float(np.median(ratio)), "compile_s": seconds[name],
                        "residual": float(np.linalg.norm(rest[name]) / np.linalg.norm(b))})
    show(rows)
    return rows


def main() -> None:
    save("adjoint", {
        "layer": layer(), "conditioning": conditioning(), "backward": backward()})


if __name__ == "__main__":
    main()
