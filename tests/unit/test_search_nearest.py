"""What a search that found nothing says: the figures that were limited, the nearest first, and what would help."""

from __future__ import annotations

import math
import re

from edgekit.compress.margin import of_values
from edgekit.errors import SourceError
from edgekit.search.budget import parse
from edgekit.search.evaluate import unprovable
from edgekit.search.limits import Limits
from edgekit.search.run import _more
from edgekit.search.trials import Candidate, Trial, no_candidate, refused


def trial(line: str, drop: float, ekz: int, file: int, margin: float = 0.0) -> Trial:
    return Trial(
        line=line, target="ort-int8", drop=drop, margin=margin, size=ekz, file=file, download=file - 1000
    )


FEW = trial("few", 0.74, 20_000, 70_000)  # the smallest, and of no use
SPARSE = trial("prune(sparsity=0.9)", 0.0, 40_472, 333_840)
HALVED = trial("lowrank", 0.03, 60_000, 88_000)
TRIALS = [FEW, SPARSE, HALVED, refused(Candidate(steps=(), target="x"), SourceError("no", hint=""), 1.0)]


def test_what_the_budget_limits_is_what_is_said():
    error = no_candidate(parse("drop<=4pt,file<=80KB"), TRIALS, [], [])
    nearest = error.message.partition("The nearest: ")[2].split("; ")
    assert [part.partition(" →")[0] for part in nearest] == ["lowrank", "prune(sparsity=0.9)", "few"]
    assert "file 88,000 bytes" in nearest[0]
    assert "file 333,840 bytes" in nearest[1]
    assert "40,472" not in error.message
    both = no_candidate(parse("ekz<=10KB,download<=20KB"), [SPARSE], [], []).message
    assert "ekz 40,472 bytes, download 332,840 bytes" in both
    assert "ekz 40,472" in no_candidate(parse("drop<=0.1pt"), [SPARSE], [], []).message


def test_the_margin_for_chance_counts():
    sure, unsure = trial("sure", 0.05, 1, 1), trial("unsure", 0.03, 1, 1, margin=0.2)
    message = no_candidate(parse("drop<=1pt"), [unsure, sure], [], []).message
    assert message.index("sure →") < message.index("unsure →")


def test_the_hint_names_what_is_there():
    hint = no_candidate(parse("drop<=4pt"), [SPARSE], [], _more(Limits(trials=6), trains=True)).hint
    assert hint.startswith("loosen a limit or give it more candidates (trials)")
    assert "train" not in hint
    assert "time" not in hint.replace("sometimes", "")
    assert "train" in _more(Limits(seconds=math.inf), trains=False)[1]
    assert "time" in _more(Limits(seconds=60.0), trains=True)[0]


def rights(count):
    return of_values([1.0] * count)


def test_a_drop_that_so_few_samples_cannot_show_is_said():
    said = unprovable(parse("drop<=1pt"), rights(225))
    assert "225 evaluation samples" in said
    assert "drop<=1pt@50%" in said
    (rows,) = map(int, re.findall(r"give eval about (\d+)", said))
    assert not unprovable(parse("drop<=1pt"), rights(rows // 2))
    assert unprovable(parse("drop<=1pt"), rights(rows // 2 - 5))
    assert "evaluation samples" in no_candidate(parse("drop<=1pt"), [SPARSE], [], [], said).hint
    assert "give eval" not in unprovable(parse("drop<=0"), rights(5000))  # no number of them shows it
    for budget in ("drop<=1pt@50%", "drop<=5pt", "ekz<=1KB"):
        assert not unprovable(parse(budget), rights(225))
