"""Budgets, recipes and the search: parsed, written, resumed; the winner is never larger than a single method."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgekit.compress import recipes
from edgekit.compress.recipes import Ship
from edgekit.compress.step import options
from edgekit.compress.steps.cluster import Cluster
from edgekit.compress.steps.prune import Prune
from edgekit.errors import ConfigError, EdgekitError, SourceError, UnknownNameError, UsageError
from edgekit.search import budget as budgets
from edgekit.search.budget import Budget
from edgekit.search.limits import Limits
from edgekit.search.space import methods
from edgekit.search.strategy import Search
from edgekit.search.trials import Candidate, Journal, Setup, Trial, front, ranked, refused


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("drop<=1pt", Budget(drop=0.01)),
        ("size<=300KB, drop <= 0.5%", Budget(drop=0.005, ekz=300_000)),
        ("latency<=5ms@pi5,size<1MiB", Budget(ekz=1 << 20, latency_ms=5.0, device="pi5")),
        ("latency<=0.5s", Budget(latency_ms=500.0)),
        ("ekz<=1KB,file<=3KB,download<=2KB", Budget(ekz=1000, file=3000, download=2000)),
    ],
)
def test_budgets_are_parsed(text: str, wanted: Budget) -> None:
    assert budgets.parse(text) == wanted
    assert budgets.parse(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drop",
        "drop>=1pt",
        "weight<=3",
        "size<=many",
        "size<=-3",
        "drop<=1pt,drop<=2pt",
        "size<=1KB,ekz<=2KB",
        "size<=3 bananas",
    ],
)
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        budgets.parse(text)


def test_time_has_units() -> None:
    assert [budgets.parse_seconds(t) for t in ("90", "90s", "1.5m", "1h")] == [90, 90, 90, 3600]
    with pytest.raises(ConfigError):
        budgets.parse_seconds("soon")


def test_a_recipe_file_says_what_its_line_says(tmp_path: Path) -> None:
    line = "prune(sparsity=0.9;layers=0=0.5,2=0.25;training.epochs=2.0);cluster(values=8)"
    recipe = dataclasses.replace(recipes.read(line, seed=7), ship=Ship(target="ort-int8"))
    recipes.write(recipe, tmp_path / "r.toml", comment="two lines\nof it")
    again = recipes.read(str(tmp_path / "r.toml"))
    assert again == recipe
    assert again.line == line
    assert again.trains
    assert recipes.read(str(tmp_path / "r.toml"), seed=8).seed == 8
    assert recipes.dumps(again) == recipes.dumps(recipe)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("sed = 1", UnknownNameError),
        ("[[step]]\nsparsity = 0.5", ConfigError),
        ("[[step]]\nname = 'prnue'", UnknownNameError),
        ("[[step]]\nname = 'prune'\nsparsty = 0.5", UnknownNameError),
        ("[[step]]\nname = 'prune'\n[step.training]\nepoch = 1.0", UnknownNameError),
        ("[[step]]\nname = 'prune'\nsparsity = [1]", ConfigError),
        ("[[step]]\nname = 'prune'\nsparsity = 'much'", ConfigError),
        ("[[step]]\nname = 'prune'\nsparsity = 2.0", ConfigError),
        ("seed = 'a'\n[[step]]\nname = 'prune'", ConfigError),
        ("step = 3", ConfigError),
        ("[[step]", ConfigError),
        ("", ConfigError),
        ("[ship]\npack = true", ConfigError),
        ("[ship]\ntarget = 'ort-fp32'\nfast = true", UnknownNameError),
    ],
)
def test_wrong_recipe_files_are_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(error) as caught:
        recipes.read(str(tmp_path / "r.toml"))
    assert isinstance(caught.value, EdgekitError)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml"):
        recipes.read(str(tmp_path / "nothing.toml"))
    with pytest.raises(UnknownNameError):
        recipes.read("nothing")


class World:
    """A made-up truth: strength costs quality and saves bytes; two methods together save more."""

    def __init__(self, fail_after: int = 0) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail_after = fail_after

    def evaluate(self, candidate: Candidate) -> Trial:
        self.calls.append((candidate.line, candidate.target))
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        drop, size = 0.0, 100_000.0
        for step in candidate.steps:
            given = options(step)
            trained = 0.5 if given.get("training.epochs") else 1.0
            if isinstance(step, Prune):
                drop += 0.03 * step.sparsity**6 * trained
                size *= 1 - 0.9 * step.sparsity
            elif isinstance(step, Cluster):
                drop += 0.08 / step.values * trained
                size *= 0.1 + step.values / 300
        if candidate.target == "int8":
            drop, size = drop + 0.002, size * 0.6
        return Trial(line=candidate.line, target=candidate.target, drop=drop, size=round(size), seconds=1.0)


def searched(
    tmp_path: Path, world: World, *, trials: int = 60, seed: int = 0, budget: Budget | None = None
) -> tuple[list[tuple[Candidate, Trial]], Search]:
    found = tuple(m for m in methods(max_epochs=1.0) if m.name in ("prune", "cluster"))
    journal = Journal(tmp_path / "j.jsonl", {"search": "x", "seed": seed}, lambda: Setup(epochs=1.0))
    search = Search(
        found,
        ["fp32", "int8"],
        budget or Budget(drop=0.01),
        Limits(seconds=60, trials=trials, seed=seed),
        journal,
    )
    return search.run(world.evaluate, lambda *_: None), search


def test_the_winner_is_never_larger_than_the_best_single_method(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    results, _ = searched(tmp_path, World())
    budget = Budget(drop=0.01)
    best = ranked(results, budget)[0]
    singles = [r for r in ranked(results, budget) if len(r[0].steps) <= 1]
    assert best[1].size < singles[0][1].size
    assert len(best[0].steps) == 2
    assert budget.holds(best[1].drop, best[1].sizes, None)
    # Bisection: the strongest single setting that holds was found, and the next stronger does not hold.
    alone = {c.steps[0].sparsity for c, p in results if len(c.steps) == 1 and isinstance(c.steps[0], Prune)}
    assert len(alone) < 11


@pytest.mark.parametrize("seed", [0, 1])
def test_forty_five_candidates_find_the_best_of_all(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("optuna")
    world, budget = World(), Budget(drop=0.01)
    able = [m for m in methods(max_epochs=1.0) if m.name in ("prune", "cluster")]
    settings = [
        [(), *((m.step(at, v),) for at in range(len(m.strengths)) for v in m.variants())] for m in able
    ]
    every = [
        world.evaluate(Candidate(steps=(*a, *b), target=t))
        for a, b in itertools.product(*settings)
        for t in ("fp32", "int8")
    ]
    best = min(p.size for p in every if budget.holds(p.drop, p.sizes, None))
    assert len(every) > 10 * 45
    results, _ = searched(tmp_path, World(), trials=45, seed=seed)
    assert ranked(results, budget)[0][1].size <= 1.05 * best


def test_the_same_seed_tries_the_same(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    a, b, c = World(), World(), World()
    searched(tmp_path / "a", a)
    searched(tmp_path / "b", b)
    searched(tmp_path / "c", c, seed=1)
    assert a.calls == b.calls
    assert a.calls != c.calls


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    whole = World()
    results, _ = searched(tmp_path / "whole", whole)
    first = World(fail_after=30)
    part, state = searched(tmp_path / "cut", first)
    assert state.interrupted
    assert len(part) == 29
    rest = World()
    again, _ = searched(tmp_path / "cut", rest)
    assert [p for _, p in again] == [p for _, p in results]
    assert first.calls[:29] + rest.calls == whole.calls


def test_a_torn_or_foreign_journal_is_not_believed(tmp_path: Path) -> None:
    world = World()
    searched(tmp_path, world, trials=5)
    path = tmp_path / "j.jsonl"
    path.write_text(path.read_text()[:-20])
    assert len(Journal(path, {"search": "x", "seed": 0}, lambda: Setup(epochs=9.0)).known) == 4
    assert Journal(path, {"search": "x", "seed": 0}, lambda: Setup(epochs=9.0)).setup.epochs == 1.0
    other = Journal(path, {"search": "y", "seed": 0}, lambda: Setup(epochs=9.0))
    assert not other.known
    assert json.loads(path.read_text())["setup"]["epochs"] == 9.0
    assert (tmp_path / "j.old.jsonl").is_file()


def test_without_a_limit_of_the_metric_the_least_drop_within_the_size_wins(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    budget = Budget(ekz=30_000)
    results, _ = searched(tmp_path, World(), budget=budget)
    best = ranked(results, budget)[0][1]
    assert best.size <= 30_000
    assert all(best.drop <= p.drop for _, p in results if p.size <= 30_000)


def test_the_front_has_what_nothing_beats() -> None:
    def point(size: int, drop: float, error: str = "") -> Trial:
        return Trial(line=f"{size}", target="t", size=size, drop=drop, error=error)

    points = [point(10, 0.5), point(20, 0.1), point(30, 0.2), point(5, 0.0, "refused"), point(20, 0.3)]
    assert [p.size for p in front(points)] == [10, 20]


def test_the_size_that_the_budget_names_is_made_small_and_the_front_has_all_three() -> None:
    rows = {"zeros": (40, 100, 50), "bytes": (60, 70, 65), "cut": (50, 80, 45), "worse": (60, 100, 65)}
    trials = [
        (
            Candidate(steps=(), target=name),
            Trial(line=name, target="t", size=ekz, file=file, download=download, drop=0.0),
        )
        for name, (ekz, file, download) in rows.items()
    ]
    for budget, best in (
        ("drop<=1pt", "zeros"),
        ("drop<=1pt,ekz<=1KB,file<=1KB", "zeros"),
        ("drop<=1pt,file<=1KB", "bytes"),
        ("drop<=1pt,download<=1KB", "cut"),
        ("drop<=1pt,file<=1KB,download<=45", "cut"),
        ("drop<=1pt,ekz<=90,file<=75", "bytes"),
    ):
        assert ranked(trials, budgets.parse(budget))[0][1].line == best
    assert [t.line for t in front(t for _, t in trials)] == ["zeros", "cut", "bytes"]


def test_of_files_of_one_size_the_one_that_codes_best_is_first() -> None:
    trials = [
        (Candidate(steps=(), target="t"), Trial(line=str(ekz), target="t", size=ekz, file=100, drop=0.0))
        for ekz in (60, 40, 50)
    ]
    assert ranked(trials, budgets.parse("drop<=1pt,file<=1KB"))[0][1].size == 40


def test_files_as_a_store_sends_them(tmp_path: Path) -> None:
    import zipfile

    from edgekit.search.sizes import download, on_device

    files = [tmp_path / "zeros.bin", tmp_path / "noise.bin"]
    files[0].write_bytes(bytes(3 << 20))
    files[1].write_bytes(random.Random(0).randbytes(100_000))
    assert on_device(files) == (3 << 20) + 100_000
    with zipfile.ZipFile(tmp_path / "app.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as package:
        for file in files:
            package.write(file, file.name)
    assert download(files) == sum(member.compress_size for member in package.infolist())


def test_no_mixture_is_tried_before_each_step_alone_however_short_the_time(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    found = tuple(m for m in methods(max_epochs=1.0) if m.name in ("prune", "cluster"))
    for seconds in (3.0, 5.0, 8.0, 12.0):
        journal = Journal(tmp_path / f"{seconds}.jsonl", {"search": "x"}, lambda: Setup(epochs=1.0))
        limits = Limits(seconds=seconds, seed=0)
        search = Search(found, ["fp32", "int8"], Budget(drop=0.01), limits, journal)
        tried = [c for c, _ in search.run(World().evaluate, lambda *_: None)]
        mixed = next((at for at, c in enumerate(tried) if len(c.steps) > 1), len(tried))
        alone = {
            (c.steps[0].NAME, bool(options(c.steps[0])["training.epochs"])) for c in tried[:mixed] if c.steps
        }
        assert mixed == len(tried) or len(alone) == 4


def test_steps_that_cannot_train_are_tried_without(tmp_path: Path) -> None:
    trained = {m.name: m for m in methods(max_epochs=0.25)}
    assert trained["prune"].choices["training.epochs"] == (0.0, 0.25)
    untrained = {m.name: m for m in methods(max_epochs=0.0)}
    assert untrained["prune"].choices["training.epochs"] == (0.0,)
    assert len(untrained["prune"].variants()) == 1


def test_what_a_model_refuses_alone_is_in_no_combination(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    no = {"depth", "shrink", "low-rank", "sparsify"}

    class Refuses(World):
        def evaluate(self, candidate: Candidate) -> Trial:
            point = super().evaluate(candidate)
            if any(s.NAME in no for s in candidate.steps):
                return refused(candidate, SourceError("no blocks", hint=""), 1.0)
            return point

    found = tuple(m for m in methods(max_epochs=1.0) if m.name in {"prune", "cluster"} | no)
    journal = Journal(tmp_path / "j.jsonl", {"search": "x"}, lambda: Setup(epochs=1.0))
    search = Search(
        found, ["fp32", "int8"], Budget(drop=0.01), Limits(seconds=900, trials=150, seed=0), journal
    )
    results = search.run(Refuses().evaluate, lambda *_: None)
    assert any(len(c.steps) == 2 for c, _ in results)
    impossible = [c for c, _ in results if any(s.NAME in no for s in c.steps)]
    assert all(len(c.steps) == 1 for c in impossible)
    # Two settings each say so, with training or without.
    assert len(impossible) <= 2 * len(no)
