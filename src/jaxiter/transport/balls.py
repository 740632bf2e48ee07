"""Which points fit into one ball: smallest enclosing balls, and tuples of distinct classes."""

from itertools import combinations

import numpy as np

#: What rounding may add to a squared radius.
SLACK = 1e-9


def squared_radii(points: np.ndarray) -> np.ndarray:
    """The squared radii of the smallest enclosing balls of m tuples of points `[m, k, D]`.

    The ball of a tuple is its circumscribed one, where the centre lies in the hull, and else the
    largest of those of its parts. `[m]`, float64.
    """
    count = points.shape[1]
    if count == 1:
        return np.zeros(len(points))
    parts = np.max([squared_radii(points[:, list(rest)])
                    for rest in combinations(range(count), count - 1)], axis=0)
    sides = points[:, 1:] - points[:, :1]
    gram = sides @ sides.transpose(0, 2, 1)
    half = np.diagonal(gram, axis1=1, axis2=2) / 2
    weights = np.einsum("mij,mj->mi", np.linalg.pinv(gram, hermitian=True), half)
    solved = np.abs(np.einsum("mij,mj->mi", gram, weights) - half).max(1) <= 1e-9 * half.max(1)
    inside = solved & (weights.min(1) > 0) & (weights.sum(1) < 1)
    return np.where(inside, np.maximum(np.einsum("mi,mi->m", weights, half), parts), parts)


def feasible_tuples(
    points: np.ndarray, parts: np.ndarray, radius: float, order: int
) -> np.ndarray:
    """All tuples of at most `order` points of distinct parts that a ball of this radius holds.

    Args:
      points: `[n, D]`. parts: `[n]`, from 0 to K - 1, none left out.
      radius: of the ball. order: most members of a tuple.

    Returns:
      `[E, K]` (int32): the member of each part, or -1; single points first.
    """
    limit = radius**2 * (1 + SLACK)
    tuples = [np.arange(len(points))[:, None]]
    while len(tuples) < min(order, parts.max() + 1) and len(tuples[-1]):
        before = tuples[-1]
        # A tuple that fits is one that fits and a point of a later part.
        rows, added = np.nonzero(parts[before[:, -1], None] < parts[None, :])
        near = np.max([np.sum((points[before[rows, k]] - points[added]) ** 2, 1)
                       for k in range(before.shape[1])], axis=0) <= 4 * limit
        longer = np.column_stack([before[rows[near]], added[near]])
        tuples.append(longer[squared_radii(points[longer]) <= limit])
    edges = [np.full((len(members), parts.max() + 1), -1, np.int32) for members in tuples]
    for out, members in zip(edges, tuples, strict=True):
        np.put_along_axis(out, parts[members], members.astype(np.int32), axis=1)
    return np.concatenate(edges)
