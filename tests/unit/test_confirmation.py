"""A search accepts what loses more than the budget says no more often than the budget's confidence lets it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_confirmation as simulation

NOMINAL = 0.1


@pytest.mark.parametrize("count", simulation.COUNTS)
def test_of_made_up_searches_few_accept_wrongly(count: int) -> None:
    rule, careless = simulation.false_acceptance(count, 0.03, candidates=20, draws=400)
    assert rule <= NOMINAL
    assert careless > 2 * NOMINAL


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.01, 0.02])
@pytest.mark.parametrize("gains", simulation.GAINS)
@pytest.mark.parametrize("count", simulation.COUNTS)
def test_of_20000_made_up_searches_few_accept_wrongly(count: int, gains: float, limit: float) -> None:
    rule, _ = simulation.false_acceptance(count, gains, limit=limit)
    assert rule <= NOMINAL


def test_a_candidate_that_loses_nothing_is_accepted() -> None:
    assert simulation.holds(0.01, 0, 0, 500, 0.95)
    assert not simulation.holds(0.01, 0, 0, 50, 0.95)
