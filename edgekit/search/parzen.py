"""What a multi-objective Parzen estimator proposes (Bergstra et al. 2011, as in Optuna), which is told everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import optuna

from edgekit.compress.step import Scalar, Step
from edgekit.search.budget import Budget
from edgekit.search.space import Method, apart
from edgekit.search.trials import Candidate, Trial


class Estimator:
    """A study of ``methods`` on ``targets``: size and drop are minimised, the budget's limits are constraints."""

    def __init__(self, methods: Sequence[Method], targets: Sequence[str], budget: Budget, seed: int) -> None:
        self._methods, self._targets, self._budget = methods, targets, budget
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def propose(self) -> tuple[optuna.Trial, tuple[Step, ...], str]:
        """What to try next: steps and a target, and what :meth:`finish` wants to be told of."""
        asked = self._study.ask()
        return asked, *self._settings(asked)

    def _settings(self, asked: optuna.Trial) -> tuple[tuple[Step, ...], str]:
        target = asked.suggest_categorical("target", list(self._targets))
        steps: list[Step] = []
        for m in self._methods:
            if asked.suggest_categorical(f"use {m.name}", [False, True]):
                at = asked.suggest_int(m.name, 0, len(m.strengths) - 1)
                choices = {
                    k: cast("Scalar", asked.suggest_categorical(f"{m.name} {k}", list(v)))
                    for k, v in m.choices.items()
                }
                if not apart([m.name, *(s.NAME for s in steps)]):
                    steps.append(m.step(at, choices))
        return tuple(steps), target

    def learn(self, candidate: Candidate, trial: Trial) -> None:
        """A result that was not asked for."""
        steps = {s.NAME: s for s in candidate.steps}
        settings: dict[str, Scalar] = {"target": candidate.target}
        for m in self._methods:
            settings[f"use {m.name}"] = m.name in steps
            if m.name in steps:
                at, choices = m.place(steps[m.name])
                settings |= {m.name: at, **{f"{m.name} {k}": v for k, v in choices.items()}}
        self._study.enqueue_trial(settings)
        asked = self._study.ask()
        self._settings(asked)
        self.finish(asked, trial)

    def finish(self, asked: optuna.Trial, trial: Trial | None) -> None:
        """What came out; without a trial, that nothing did."""
        failed = optuna.trial.TrialState.FAIL
        if trial is None:
            self._study.tell(asked, None, state=failed)
            return
        for number, excess in enumerate(self._budget.excess(trial.bound, trial.sizes, trial.latency_ms)):
            asked.set_constraint(f"limit {number}", excess)
        if trial.error:
            self._study.tell(asked, None, state=failed)
        else:
            self._study.tell(asked, [float(self._budget.smallest(trial.sizes)), trial.drop])
