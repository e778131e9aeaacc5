"""A worker of a search: a process that measures candidates, one after the other, as the search alone would.

An order in a file says of which search; each line on stdin is a candidate, each line on stdout what it costs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.compress import recipes
from edgekit.core import files
from edgekit.core.config import Options
from edgekit.core.structure import structure, to_builtins
from edgekit.pipeline import api
from edgekit.pipeline.compress import named
from edgekit.search import budget as budgets
from edgekit.search.evaluate import Evaluator
from edgekit.search.limits import Limits
from edgekit.search.trials import Candidate, Trial

_MOST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Order:
    """The search that a worker belongs to: SOURCE, options, budget and seed; ``folder`` is its own, ``cache`` the
    user's."""

    source: str
    options: Options
    budget: str
    seed: int
    folder: Path
    cache: Path


class Ask(msgspec.Struct, frozen=True):
    """A candidate to measure. ``smallest`` is the smallest that holds so far, as :class:`Evaluator` counts; ``None``
    for none."""

    line: str
    target: str
    smallest: float | None


class Answer(msgspec.Struct, frozen=True):
    """What it costs, and what it would be said to cost were it not built: ``None`` where that is not known."""

    trial: Trial
    unbuilt: Trial | None


def write(order: Order, path: Path) -> None:
    """Write an order for a worker to read."""
    files.write(path, msgspec.json.encode(to_builtins(order)))


def work(path: Path) -> None:
    """Be a worker, until stdin ends. The first line that it writes is empty: it is ready."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)  # what the user's code prints is no answer
        order = structure(Order, msgspec.json.decode(files.read(path, most=_MOST_BYTES)), where=str(path))
        os.environ["EDGEKIT_CACHE"] = str(order.cache)
        context = api.context(order.options, None)
        evaluator = Evaluator(
            context,
            named(context, order.source),
            budgets.parse(order.budget),
            Limits(seed=order.seed),
            order.folder,
        )
        answers.write(b"\n")
        for text in sys.stdin.buffer:
            ask = msgspec.json.decode(text, type=Ask)
            steps = recipes.read(ask.line).steps if ask.line else ()
            evaluator.smallest = float("inf") if ask.smallest is None else ask.smallest
            trial, unbuilt = evaluator.evaluate_both(Candidate(steps=steps, target=ask.target))
            answers.write(msgspec.json.encode(Answer(trial=trial, unbuilt=unbuilt)) + b"\n")
