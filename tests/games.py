"""Games with known values, in numpy."""

import itertools

import numpy as np
from scipy.optimize import linprog

RPS = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])


def kuhn():
    """Kuhn's poker, `[27, 64]`: what the first player wins by pure strategies; value -1/18.

    Rows: for each card check and fold, check and call, or bet. Columns: for each card what to do
    after a bet, fold or call, and after a check, check or bet.
    """
    first = list(itertools.product(range(3), repeat=3))
    second = list(itertools.product(itertools.product((0, 1), (0, 1)), repeat=3))
    payoff = np.zeros((27, 64))
    for i, mine in enumerate(first):
        for j, theirs in enumerate(second):
            for card, other in itertools.permutations(range(3), 2):
                wins = 1 if card > other else -1
                calls, bets = theirs[other]
                if mine[card] == 2:
                    payoff[i, j] += 2 * wins if calls else 1
                elif bets:
                    payoff[i, j] += 2 * wins if mine[card] == 1 else -1
                else:
                    payoff[i, j] += wins
    return payoff / 6


def by_linear_program(payoff):
    """`(x, value)` of the row player, who maximises."""
    m, n = payoff.shape
    out = linprog(np.r_[np.zeros(m), -1], A_ub=np.c_[-payoff.T, np.ones(n)], b_ub=np.zeros(n),
                  A_eq=np.r_[np.ones(m), 0][None], b_eq=[1],
                  bounds=[(0, None)] * m + [(None, None)])
    return out.x[:m], out.x[m]


def gap(payoff, x, y):
    return (payoff @ y).max() - (payoff.T @ x).min()
