"""Kuhn's poker, solved: `python examples/kuhn_poker.py`.

Three cards, two players, one chip each in the pot. The first checks or bets one more; a bet is
called or folded; after a check the second may bet, which the first calls or folds. A pure strategy
says what to do with each card: 27 for the first player, 64 for the second, and the game is a
matrix. Its value is -1/18 a hand, for the second player has the advantage of position, and the
first must bluff: betting with the worst card, now and then, is part of every equilibrium but one.
"""

import itertools

import jax
import numpy as np

from jaxiter.operators import matrix_game

CARDS = ("jack", "queen", "king")
CHECK_FOLD, CHECK_CALL, BET = range(3)
FIRST = list(itertools.product((CHECK_FOLD, CHECK_CALL, BET), repeat=3))
#: For each card: whether to call a bet, whether to bet after a check.
SECOND = list(itertools.product(itertools.product((False, True), repeat=2), repeat=3))


def won(mine: int, plan: int, other: int, answer: tuple) -> int:
    """Chips that the first player wins with these cards."""
    wins = 1 if mine > other else -1
    calls, bets = answer
    if plan == BET:
        return 2 * wins if calls else 1
    if bets:
        return 2 * wins if plan == CHECK_CALL else -1
    return wins


def payoffs() -> np.ndarray:
    """`[27, 64]`: what the first player wins in the mean over the six deals."""
    deals = list(itertools.permutations(range(3), 2))
    return np.array([[sum(won(mine, first[mine], other, second[other]) for mine, other in deals)
                      for second in SECOND] for first in FIRST], np.float32) / len(deals)


def main() -> None:
    """Solve the game and say how it is played."""
    game = payoffs()

    def solve(scale: float) -> tuple:
        out = matrix_game(scale * game)
        return out.value, out

    (_, out), slope = jax.jit(jax.value_and_grad(solve, has_aux=True))(1.0)
    out.check()
    print(f"{game.shape[0]} x {game.shape[1]} strategies, {out.message()}")
    print(f"value {float(out.value):.6f} (-1/18 is {-1 / 18:.6f}); what both could still win "
          f"together by turning: {float(out.exploitability):.1e}")
    x, y = np.asarray(out.x), np.asarray(out.y)
    print("\nfirst player   bets   calls a bet")
    for card, name in enumerate(CARDS):
        bets = sum(p for p, plan in zip(x, FIRST, strict=True) if plan[card] == BET)
        calls = sum(p for p, plan in zip(x, FIRST, strict=True) if plan[card] == CHECK_CALL)
        print(f"{name:12} {bets:6.3f}   {calls / max(1 - bets, 1e-6):6.3f}")
    print("\nsecond player  calls  bets after a check")
    for card, name in enumerate(CARDS):
        calls, bets = (sum(p for p, plan in zip(y, SECOND, strict=True) if plan[card][k])
                       for k in (0, 1))
        print(f"{name:12} {calls:6.3f}   {bets:6.3f}")
    bluff = sum(p for p, plan in zip(x, FIRST, strict=True) if plan[0] == BET)
    value = sum(p for p, plan in zip(x, FIRST, strict=True) if plan[2] == BET)
    print(f"\nA king is bet three times as often as a jack: {value:.3f} and 3 x {bluff:.3f}.")
    print(f"Twice the stakes, twice the loss: the slope is {float(slope):.6f}.")


if __name__ == "__main__":
    main()
