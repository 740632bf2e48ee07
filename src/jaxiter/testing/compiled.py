"""What a compiled program communicates: collectives in its loops and in all of it."""

import re
from typing import NamedTuple

import jax

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


class Collectives(NamedTuple):
    """Counts of collective instructions in a compiled program.

    looped: those that run in every iteration of some loop. total: all of them. Both are
    dictionaries from the kind, as XLA names it, to the count, without zeros.
    """

    looped: dict[str, int]
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
    Collectives(looped={}, total={})
    """
    text = compiled.as_text() or ""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    # body= and condition= belong to loops; calls=, to_apply= and the rest to functions.
    todo = re.findall(r"(?:body|condition)=%?([\w.\-]+)", text)
    looped: set[str] = set()
    while todo:
        name = todo.pop()
        if name in bodies and name not in looped:
            looped.add(name)
            todo += re.findall(r"%([\w.\-]+)", bodies[name])
    return Collectives(_count("\n".join(bodies[name] for name in looped)), _count(text))


def _count(text: str) -> dict[str, int]:
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in KINDS}
    return {kind: number for kind, number in found.items() if number}
