"""Before a search: how long one candidate may train, and at which rate.

The rate is tried, not guessed: what a search trains is a model that was trained before and then damaged. So weights
are set to zero until the loss shows it, and of a few rates the one that heals the most in some steps is taken.
"""

from __future__ import annotations

import copy
import itertools
import math
import time

import torch
from torch import nn

from edgekit.compress.training.settings import Training
from edgekit.compress.training.task import Task
from edgekit.compress.training.train import fit, thaw
from edgekit.errors import DataError, TrainingError
from edgekit.search.limits import Limits
from edgekit.search.trials import Setup

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_FEW = (1e-4, 1e-3)
SHARE = 32
"""One candidate may train for this part of the time."""
LONGEST = 4.0
"""Epochs, where the number of candidates is what ends the search."""
_TRYING = 25
"""This part of the time goes into the rate."""
_STEPS = (4, 48)
_DAMAGE = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
_BATCHES = 4


def setup(task: Task, model: nn.Module, limits: Limits) -> Setup:
    """Epochs and rate for ``limits``; no clock is asked where they do not limit the time.

    Epochs are a power of two, so that a clock that goes a little differently gives the same.
    """
    begin = time.monotonic()
    total = task.steps()
    if not total or limits.epochs == 0:
        return Setup()
    timed = math.isfinite(limits.seconds)
    step_s = _seconds_a_step(task, model) if timed else 0.0
    epochs = limits.epochs
    if epochs is None:
        fits = limits.seconds / SHARE / (step_s * total) if timed else LONGEST
        epochs = float(2.0 ** max(-6, min(6, math.floor(math.log2(fits)))))
    rates: tuple[float, ...] = RATES
    steps = _STEPS[1]
    if timed:
        steps = int(limits.seconds / _TRYING / len(RATES) / step_s)
        if steps < _STEPS[0]:
            steps, rates = int(limits.seconds / _TRYING / len(_FEW) / step_s), _FEW
    rate = usual_rate(model)
    if steps >= _STEPS[0]:
        rate = best_rate(task, model, min(_STEPS[1], steps, total), rates)
    return Setup(epochs=epochs, rate=rate, seconds=round(time.monotonic() - begin, 2))


def usual_rate(model: nn.Module) -> float:
    """Where there is no time to try: transformers are tuned at a tenth of what convolutions take."""
    return 1e-4 if any(isinstance(m, nn.LayerNorm) for m in model.modules()) else 1e-3


def best_rate(task: Task, model: nn.Module, steps: int, rates: tuple[float, ...] = RATES) -> float:
    """The rate at which ``steps`` updates heal a damaged copy of ``model`` the most; of equal ones the lowest."""
    damaged = _damaged(task, model)
    losses = {}
    for rate in rates:
        tried = copy.deepcopy(damaged)
        try:
            fit(tried, task, Training(epochs=steps / task.steps(), rate=rate), seed=0)
        except (DataError, TrainingError):  # loss or weights are not finite, nor will they be at higher rates
            break
        losses[rate] = _loss(task, tried)
    return min(losses, key=lambda r: (losses[r], r)) if losses else rates[0]


def _damaged(task: Task, model: nn.Module) -> nn.Module:
    """A copy with the smallest weights set to zero, so many that the loss rises by a half."""
    sound = _loss(task, model)
    damaged = copy.deepcopy(model)
    for share in _DAMAGE:
        with torch.no_grad():
            for parameter in damaged.parameters():
                if parameter.dim() > 1:
                    size = parameter.abs().flatten()
                    limit = size.kthvalue(max(1, int(share * len(size)))).values
                    parameter[parameter.abs() <= limit] = 0
        if not _loss(task, damaged) < 1.5 * abs(sound) + 0.1:
            break
    return damaged


def _loss(task: Task, model: nn.Module) -> float:
    """Over a few batches of an epoch that the probe does not train on."""
    model.eval()
    with torch.no_grad():
        losses = [float(task.loss(model, b)) for b in itertools.islice(task.batches(1, 0), _BATCHES)]
    mean = math.fsum(losses) / max(1, len(losses))
    return mean if math.isfinite(mean) else math.inf


def _seconds_a_step(task: Task, model: nn.Module) -> float:
    trained = copy.deepcopy(model).train()
    thaw(trained)
    begin, count = time.perf_counter(), 0
    for batch in task.batches(0, 0):
        torch.autograd.backward(task.loss(trained, batch))
        count += 1
        if count >= 2 * _BATCHES or time.perf_counter() - begin > 5:
            break
    return max(1e-6, (time.perf_counter() - begin) / max(1, count))
