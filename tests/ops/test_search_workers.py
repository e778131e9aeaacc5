"""A search on several workers: the same trials in the same order as on one, in less time."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("optuna")

from test_compress_search import World

from edgekit.errors import BackendError
from edgekit.search.budget import Budget, Sizes
from edgekit.search.limits import Limits
from edgekit.search.space import methods
from edgekit.search.strategy import Search
from edgekit.search.trials import Candidate, Journal, Setup, Trial
from edgekit.search.workers import Workers, _Worker

# A stand-in for the worker's process: the made-up truth of the other tests, as quick as a random number says.
WORKER = """
import dataclasses, random, sys, time
sys.path[:0] = [{tests!r}]
import msgspec
from test_compress_search import World
from edgekit.compress import recipes
from edgekit.search.part import Answer, Ask
from edgekit.search.trials import Candidate
world, chance = World(), random.Random({seed})
print(flush=True)
for number, text in enumerate(sys.stdin.buffer, 1):
    ask = msgspec.json.decode(text, type=Ask)
    if number == {dies}:
        sys.exit("no memory left")
    time.sleep({slow} or chance.random() / 50)
    steps = recipes.read(ask.line).steps if ask.line else ()
    trial = world.evaluate(Candidate(steps=steps, target=ask.target))
    unbuilt = dataclasses.replace(trial, size=trial.size + 7) if steps else None
    answer = Answer(dataclasses.replace(trial, built=True), unbuilt)
    print(msgspec.json.encode(answer).decode(), flush=True)
"""


@dataclass
class Evaluator:
    """What the search asks of the real one: what is known of the smallest, and whether that makes a build needless."""

    folder: Path
    smallest: float = math.inf

    def saw(self, trial: Trial) -> None:
        if trial.built and trial.drop <= 0.01:
            self.smallest = min(self.smallest, trial.size)

    def too_large(self, candidate: Candidate, weights: Sizes) -> bool:
        return candidate.target == "fp32" and weights.ekz > 1.15 * self.smallest


class Alone(Evaluator):
    """One process, in the order that the search asks."""

    def evaluate(self, candidate: Candidate) -> Trial:
        trial = World().evaluate(candidate)
        unbuilt = dataclasses.replace(trial, size=trial.size + 7) if candidate.steps else None
        if unbuilt is not None and self.too_large(candidate, unbuilt.sizes):
            return unbuilt
        trial = dataclasses.replace(trial, built=True)
        self.saw(trial)
        return trial


@dataclass
class Stand(Workers):
    """Workers whose processes are :data:`WORKER`."""

    dies: int = 0
    slow: float = 0.0

    def _started(self, number: int) -> _Worker:
        code = WORKER.format(tests=str(Path(__file__).parent), seed=number, dies=self.dies, slow=self.slow)
        log = self.evaluator.folder / f"{number}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        return _Worker(process=process, log=log)


def search(folder: Path, trials: int, seed: int) -> Search:
    found = tuple(m for m in methods(max_epochs=1.0) if m.name in ("prune", "cluster"))
    folder.mkdir()
    journal = Journal(folder / "j.jsonl", {"search": "x", "seed": seed}, lambda: Setup(epochs=1.0))
    return Search(found, ["fp32", "int8"], Budget(drop=0.01), Limits(trials=trials, seed=seed), journal)


def without_time(results: list[tuple[Candidate, Trial]]) -> list[Trial]:
    return [dataclasses.replace(t, seconds=0.0) for _, t in results]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_trials_are_those_of_one_process(tmp_path: Path, seed: int) -> None:
    one = search(tmp_path / "one", 45, seed).run(Alone(tmp_path / "one").evaluate, lambda *_: None)
    assert {t.built for _, t in one} == {True, False}
    running = search(tmp_path / "three", 45, seed)
    with Stand(Evaluator(tmp_path / "three"), 3, running) as workers:
        three = running.run(workers.evaluate, lambda *_: None)
    assert without_time(three) == without_time(one)
    written = Journal(running.journal.path, {"search": "x", "seed": seed}, Setup).known.values()
    assert [(t.line, t.target) for t in written] == [(t.line, t.target) for _, t in one]
    assert all(w.process.returncode is not None for w in workers._workers)


def test_what_was_foreseen_is_at_work_before_it_is_asked_for(tmp_path: Path) -> None:
    running = search(tmp_path / "two", 20, 0)
    early = []
    # Slower than it takes to foresee anything, on a busy machine too.
    with Stand(Evaluator(tmp_path / "two"), 2, running, slow=0.3) as workers:
        while not all(w.ready for w in workers._workers):
            workers._listen()

        def evaluate(candidate: Candidate) -> Trial:
            wanted = (candidate.line, candidate.target)
            early.append(wanted in workers._known or wanted in {w.busy for w in workers._workers})
            return workers.evaluate(candidate)

        running.run(evaluate, lambda *_: None)
    assert len(early) == 20
    assert sum(early) > 5


def test_a_worker_that_ends_is_said_with_what_it_was_at(tmp_path: Path) -> None:
    running = search(tmp_path / "dying", 20, 0)
    with (
        Stand(Evaluator(tmp_path / "dying"), 2, running, dies=3) as workers,
        pytest.raises(BackendError, match=r"ended with exit status 1 while it measured .*: no memory left"),
    ):
        running.run(workers.evaluate, lambda *_: None)
    assert len(Journal(running.journal.path, {"search": "x", "seed": 0}, Setup).known) >= 2
