"""How a recipe of steps runs: one after the other, measured, and kept so that a run that was killed goes on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from edgekit.compress import arithmetic, constraints, counting, plan
from edgekit.compress.step import (
    CompressionReport,
    Context,
    Size,
    Step,
    StepReport,
    options,
    rebuild,
    spell,
)
from edgekit.compress.training import checkpoint
from edgekit.compress.training.settings import is_first_process
from edgekit.compress.training.task import Chance, Task
from edgekit.compress.training.train import thaw
from edgekit.errors import ComposeError, DataError, EdgekitError, SourceError, TrainingError

_VERSION = 2
"""Of what steps compute: part of every key."""
_SURE, _LITTLE = 1.645, 0.1
"""At chance: within what 95 % of all guesses have, and with less than a tenth of what the source has above it."""


def run(
    model: torch.nn.Module,
    steps: Sequence[Step],
    context: Context,
    *,
    work: Path | None = None,
    judged: bool = True,
) -> tuple[torch.nn.Module, CompressionReport]:
    """Apply ``steps`` in order, measuring before and after each.

    ``work`` is a folder in which finished steps and the training's checkpoints are kept by what they depend
    on: a run that was killed goes on from there, to the same result. All processes of one run share it.
    Without ``judged`` the metric is not taken.

    Raises ``ComposeError`` where a step cannot keep what another made of the weights, before any training if it can be
    known then, and what the steps raise.
    """
    rehearse(model, steps, context)
    if context.original is None and any(s.learns_from_original for s in steps):
        context = dataclasses.replace(context, original=_frozen(model))
    reports: list[StepReport] = []
    judge = context if judged else dataclasses.replace(context, task=None)
    thaw(model)
    before = measure(model, judge)
    for number, step in enumerate(steps):
        key = cache_key(step, model, context)
        own = dataclasses.replace(context, tensors={})
        begin = time.perf_counter()
        held = constraints.laid(model)
        kept = None if work is None else work / f"step-{key[:32]}.safetensors"
        if kept is not None and kept.is_file():
            model, after = _resumed(step, model, own, kept)
            if after.metric is None and judge.task is not None:  # kept by a search, which does not take it
                after = measure(model, judge)
        else:
            running = None if work is None else work / f"running-{key[:32]}"
            with checkpoint.resumable(running), arithmetic.pinned():
                model = step.apply(model, own).eval()
            constraints.check(model, held, spell(step))
            after = measure(model, judge)
            if kept is not None and running is not None and is_first_process():
                _keep(kept, model, own, after)
                shutil.rmtree(running, ignore_errors=True)
        _in_order(model)
        context.tensors.update({f"{number}/{name}": tensor for name, tensor in own.tensors.items()})
        seconds = time.perf_counter() - begin
        reports.append(StepReport(step=spell(step), key=key, before=before, after=after, seconds=seconds))
        before = after
    name = context.task.metric_name if context.task is not None else ""
    if judge.task is not None and any(options(s).get("training.epochs") for s in steps):
        _above_chance(judge.task, reports)
    return model, CompressionReport(metric=name, steps=tuple(reports))


def rehearse(model: torch.nn.Module, steps: Sequence[Step], context: Context) -> None:
    """Raise the ``ComposeError`` that running ``steps`` would end with, as far as it can be told from the model as it
    is."""
    for number, step in enumerate(steps[1:], 1):
        if step.starts_anew:
            raise ComposeError(
                f"{spell(step)} takes another network, which {spell(steps[number - 1])} has not changed",
                hint="put it first, or leave the steps before it out",
            )
    if len(steps) < 2 or steps[0].starts_anew:
        return
    with constraints.tried(model):
        for step in steps:
            try:
                model = step.rehearse(model, context)
            except ComposeError:
                raise
            except EdgekitError:  # of the structure that only the steps before it will have made
                return


def _above_chance(task: Task, reports: Sequence[StepReport]) -> None:
    """Raise ``TrainingError`` if what training left is no better than answers that do not look at the input, and what
    it began with is. ``task`` may not know what such answers reach."""
    chance = getattr(task, "chance", None)
    metrics = [reports[0].before.metric, *(r.after.metric for r in reports)]
    if chance is None or any(m is None for m in metrics):
        return
    known: Chance = chance()
    first, *rest = (m for m in metrics if m is not None)
    limit = known.level + min(_SURE * known.spread, _LITTLE * (first - known.level))
    if first <= known.level or rest[-1] > limit:
        return
    fell = next(r.step for r, metric in zip(reports, rest, strict=True) if metric <= limit)
    raise TrainingError(
        f"the {task.metric_name} is {rest[-1]:.4g} in the end ({first:.4g} at first); the same answer whatever the "
        f"input has {known.level:.4g}. It fell there in {fell}",
        hint="lower the rate (training.rate), train for longer (training.epochs), or take less away",
    )


def _keep(path: Path, model: torch.nn.Module, context: Context, size: Size) -> None:
    """Keep a finished step: all weights of the model after it, what it recorded, the size that was measured."""
    tensors = {f"weights/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"tensors/{k}": v for k, v in context.tensors.items()}
    checkpoint.write(path, tensors, {"size": dataclasses.asdict(size)})


def _resumed(
    step: Step, model: torch.nn.Module, context: Context, path: Path
) -> tuple[torch.nn.Module, Size]:
    """What :func:`_keep` kept."""
    tensors, facts = checkpoint.read(path)
    weights, recorded = checkpoint.parts(tensors, "weights", "tensors")
    context.tensors.update(recorded)
    return rebuild(step, model, recorded, weights), Size(**facts["size"])


def _in_order(model: torch.nn.Module) -> None:
    """Parameters by name: removing a parametrization puts one last, restoring a plan does not, and sums over
    parameters round by their order."""
    for module in model.modules():
        ordered = sorted(module._parameters.items())
        module._parameters.clear()
        module._parameters.update(ordered)


def _frozen(model: torch.nn.Module) -> torch.nn.Module:
    copied = copy.deepcopy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied


def measure(model: torch.nn.Module, context: Context) -> Size:
    """Size and quality. MACs need example inputs, the metric a task."""
    weights = list(model.state_dict().values())
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        nonzero=sum(int(torch.count_nonzero(p)) for p in model.parameters()),
        macs=counting.count(model, context.example_inputs),
        bytes=sum(w.numel() * w.element_size() for w in weights),
        metric=_metric(model, context.task) if context.task is not None else None,
    )


def _metric(model: torch.nn.Module, task: Task) -> float:
    value = float(task.metric(model))
    if not math.isfinite(value):
        raise DataError(
            f"the {task.metric_name or 'metric'} is {value}",
            hint="look for bad values in the evaluation data and in what the model gives for them",
        )
    return value


def cache_key(step: Step, model: torch.nn.Module, context: Context) -> str:
    """sha256 over everything the result depends on: options, weights, task, seed, versions."""
    digest = hashlib.sha256(spell(step).encode())
    task = context.task.fingerprint if context.task else ""
    # Torch's version: its kernels round differently.
    digest.update(repr((context.seed, task, str(torch.__version__), _VERSION)).encode())
    digest.update(repr(sorted(arithmetic.described().items())).encode())
    digest.update(constraints.identity(model).encode())
    _add_weights(digest, model)
    if step.learns_from_original and context.original is not None:
        _add_weights(digest, context.original)
    return digest.hexdigest()


def _add_weights(digest: hashlib._Hash, model: torch.nn.Module) -> None:
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + str(tensor.dtype).encode() + repr(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def check_plan(folder: Path, original: torch.nn.Module, compressed: torch.nn.Module) -> None:
    """Raise ``SourceError`` unless the plan in ``folder`` makes the compressed module, bit for bit, of a copy of the
    original: one that does not never leaves here."""
    with torch.random.fork_rng(devices=[]):
        restored = plan.restore(copy.deepcopy(original), plan.read(folder)).state_dict()
    expected = compressed.state_dict()
    different = [
        k for k, v in expected.items() if k not in restored or not torch.equal(restored[k].cpu(), v.cpu())
    ]
    if different or len(restored) != len(expected):
        raise SourceError(
            f"the plan does not give the compressed model back: {', '.join(different[:5])} differ",
            hint="a step changed the structure without recording it; please report the recipe",
        )
