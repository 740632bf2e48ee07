"""What a compiled program communicates: collectives in its loops and in all of it."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import jax

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


class Collectives(NamedTuple):
    """Counts of collective instructions in a compiled program.

    looped: those that run in every iteration of an innermost loop, the steps of a solve. branched:
    those in a branch of a conditional in such a loop, such as a stop test that is due every so
    many steps. total: all of them, also those of the loops around the steps, and of loops that
    go on by a flag of their carry: they run for exceptions, once. Dictionaries from the kind, as
    XLA names it, to the count, without zeros.
    """

    looped: dict[str, int]
    branched: dict[str, int]
    total: dict[str, int]


def collectives(compiled: jax.stages.Compiled) -> Collectives:
    """Count the collectives of a compiled program.

    Args:
      compiled: `jax.jit(f).lower(*args).compile()`.

    Returns:
      `Collectives`; an instruction in a function that a loop calls counts as looped.

    >>> import jax
    >>> from jaxiter.testing import collectives
    >>> collectives(jax.jit(lambda x: x + 1).lower(1.0).compile())
    Collectives(looped={}, branched={}, total={})
    """
    text = compiled.as_text() or ""
    functions = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    pairs = re.findall(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", text)
    steps = [pair for pair in pairs if not _is_flag(functions[pair[0]])]
    flags = {name for pair in pairs if pair not in steps for name in pair}
    loops = [name for pair in steps if not _holds_loop(functions, pair, flags) for name in pair]
    everything = _reached(functions, loops, branches=True, without=flags)
    always = _reached(functions, loops, branches=False, without=flags)
    return Collectives(
        _count(functions[name] for name in always),
        _count(functions[name] for name in everything - always), _count([text]))


def _is_flag(condition: str) -> bool:
    """Whether a loop's condition computes nothing."""
    return not re.search(r" (?:compare|and|or|not|fusion|call|reduce)\(", condition)


def _holds_loop(functions: dict[str, str], pair: tuple[str, ...], flags: set[str]) -> bool:
    """Whether a loop of its own runs in this one."""
    inside = _reached(functions, list(pair), branches=True, without=flags)
    bodies = {body for name in inside
              for body in re.findall(r"body=%?([\w.\-]+)", functions[name])}
    return bool(bodies - flags)


def _reached(
    functions: dict[str, str], roots: list[str], branches: bool, without: set[str]
) -> set[str]:
    """Names of the functions that the roots call, with or without those in conditionals."""
    todo, found = list(roots), set()
    while todo:
        name = todo.pop()
        if name in functions and name not in found and name not in without:
            found.add(name)
            lines = functions[name].splitlines()
            todo += [called for line in lines if branches or " conditional(" not in line
                     for called in re.findall(r"%([\w.\-]+)", line)]
    return found


def _count(texts: Iterable[str]) -> dict[str, int]:
    text = "\n".join(texts)
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in KINDS}
    return {kind: number for kind, number in found.items() if number}
