"""How often a search under a budget accepts what loses more than it says: the table of docs/compression.md.

    python tools/check_confirmation.py [--draws 20000] [--candidates 50] [--limit 0.01]

Made-up searches: every candidate's true drop is the limit exactly, so whatever is accepted is accepted wrongly, and
none may be in more than a tenth of all searches (the default confidence is 90 %). N evaluation samples are halved;
candidates that the budget's rule lets pass on the first half are confirmed on the second one after the other, as
:mod:`edgekit.search.run` does it. Beside it the rule without that care: the bound of both halves together, as sure each
time as the whole has to be.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import numpy as np

from edgekit.compress import margin
from edgekit.search.budget import CONFIDENCE

COUNTS = (100, 300, 1000, 5000)
GAINS = (0.003, 0.03, 0.1)
"""Shares of the samples that a candidate turns right: as many more are lost."""


@functools.cache
def holds(limit: float, lost: int, gained: int, count: int, confidence: float) -> bool:
    """Whether the bound of the drop is within the limit."""
    return not margin.plausible(limit, lost, gained, count, confidence)


def _where(pairs: np.ndarray, rule: Callable[[int, int], bool]) -> np.ndarray:
    """``rule`` of each pair (lost, gained)."""
    kinds, inverse = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    table = np.array([rule(int(lost), int(gained)) for lost, gained in kinds])
    return table[inverse].reshape(pairs.shape[:-1])


def false_acceptance(
    count: int, gains: float, *, limit: float = 0.01, candidates: int = 50, draws: int = 20_000, seed: int = 0
) -> tuple[float, float]:
    """The shares of searches that accept a candidate wrongly: by the rule, and by the bound of all data at once."""
    half = count // 2
    random = np.random.default_rng(seed)
    shares = [gains + limit, gains, 1 - 2 * gains - limit]
    first = margin.spent(CONFIDENCE, 1)
    accepted = careless = 0
    for begin in range(0, draws, 1000):
        size = (min(1000, draws - begin), candidates)
        seen, unseen = (random.multinomial(half, shares, size)[..., :2] for _ in range(2))
        passing = _where(seen, lambda lost, gained: holds(limit, lost, gained, half, first))
        number = passing.cumsum(1)
        for search in np.unique(np.nonzero(passing)[0]):
            accepted += any(
                holds(limit, int(lost), int(gained), half, margin.spent(CONFIDENCE, int(k)))
                for (lost, gained), k in zip(
                    unseen[search][passing[search]], number[search][passing[search]], strict=True
                )
            )
        hopeful = _where(seen, lambda lost, gained: holds(limit, 2 * lost, 2 * gained, 2 * half, CONFIDENCE))
        both = _where(seen + unseen, lambda lost, gained: holds(limit, lost, gained, 2 * half, CONFIDENCE))
        careless += int((hopeful & both).any(1).sum())
    return accepted / draws, careless / draws


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--limit", type=float, default=0.01)
    args = parser.parse_args()
    for count in COUNTS:
        for gains in GAINS:
            rule, careless = false_acceptance(
                count, gains, limit=args.limit, candidates=args.candidates, draws=args.draws
            )
            print(
                f"N {count:5}  gains {gains:5.3f}  accepted wrongly {rule:.4f}  all data at once {careless:.4f}"
            )


if __name__ == "__main__":
    main()
