"""Blocks of a stack: which could be taken out, how much they turn their input, and taking them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgekit.compress import normalization
from edgekit.compress.hooks import removed
from edgekit.compress.step import Context, Tensors, forward
from edgekit.compress.steps import patterns
from edgekit.compress.structured.depth import Depth
from edgekit.compress.training.teacher import taught
from edgekit.compress.training.train import fit
from edgekit.errors import ConfigError, SourceError

_BATCHES = 4
_SKIP = "|skip"


@dataclass(kw_only=True)
class _Block:
    """A block that could be taken out: whether it returns its result in a tuple, ``1 - cos(in, out)``, calls."""

    in_tuple: bool
    influence: float = 0.0
    calls: int = 0


def apply(step: Depth, model: nn.Module, context: Context) -> nn.Module:
    """Take blocks out in place and return ``model``. Raises ``SourceError`` if none can go."""
    context.needs_example(step.NAME)
    candidates = _influences(model.eval(), context)
    leave = patterns.split(step.leave)
    blocks = {n: block for n, block in candidates.items() if not patterns.matches(n, leave)}
    count = round(step.share * len(candidates))
    if not blocks or not count:
        raise SourceError(
            f"no layer can be taken out ({len(candidates)} keep the shape of what they take)",
            hint="leave this step out, or ask for a larger share",
        )
    removed_blocks: dict[str, bool] = {}
    untrained = not step.training.epochs
    with normalization.preserved(model, context, _BATCHES, step=step.NAME, wanted=untrained) as settle:
        for _ in range(min(count, len(blocks))):
            name = _least(step, model, context, blocks)
            removed_blocks[name] = blocks.pop(name).in_tuple
            _skip(model, name, in_tuple=removed_blocks[name])
        settle(None)
    context.record({f"{n}{_SKIP}": torch.tensor(int(in_tuple)) for n, in_tuple in removed_blocks.items()})
    if step.training.epochs:
        fit(model, taught(step.NAME, step.training, context), step.training, seed=context.seed)
    return model


def restore(_: Depth, model: nn.Module, tensors: Tensors) -> nn.Module:
    """Take the recorded blocks out of a fresh module."""
    for key, in_tuple in tensors.items():
        if key.endswith(_SKIP):
            _skip(model, key.removesuffix(_SKIP), in_tuple=bool(in_tuple))
    return model.eval()


def _least(step: Depth, model: nn.Module, context: Context, blocks: Mapping[str, _Block]) -> str:
    """The block that matters least among those that are still there."""
    if step.criterion == "similarity":
        return min(blocks, key=lambda name: blocks[name].influence)
    task, metrics = context.needs_task(step.NAME), {}
    for name, block in blocks.items():
        module = model.get_submodule(name)
        _skip(model, name, in_tuple=block.in_tuple)
        metrics[name] = task.metric(model)
        model.set_submodule(name, module)
    return max(metrics, key=lambda name: metrics[name])


def influences(model: nn.Module, inputs: Tensors) -> dict[str, float]:
    """How much each block that could be taken out turns its input, ``1 - cos(in, out)``, on ``inputs``."""
    if not inputs:
        return {}
    blocks = _influences(model.eval(), Context(example_inputs=inputs))
    return {name: block.influence for name, block in blocks.items()}


def _influences(model: nn.Module, context: Context) -> dict[str, _Block]:
    """Blocks whose output has the shape of their input, with ``1 - cos`` of the two."""
    blocks: dict[str, _Block | None] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], out: object) -> None:
            x, in_tuple = _first((*args, *kwargs.values())), isinstance(out, tuple)
            y = out[0] if isinstance(out, tuple) and len(out) == 1 else out
            block = blocks.setdefault(name, _Block(in_tuple=in_tuple))
            fits = isinstance(y, torch.Tensor) and x is not None and x.shape == y.shape and x.dtype == y.dtype
            if block is None or not fits or x is None or not isinstance(y, torch.Tensor):
                blocks[name] = None
                return
            cosine = nn.functional.cosine_similarity(x.flatten(1).double(), y.flatten(1).double())
            block.influence = (block.influence * block.calls + 1 - float(cosine.mean())) / (block.calls + 1)
            block.calls += 1

        return hook

    with removed([m.register_forward_hook(watch(n), with_kwargs=True) for n, m in _stacked(model)]):
        with torch.no_grad():
            forward(model, context.example_inputs)
        if context.task is not None:  # the example alone may be random
            context.observe(model, _BATCHES, step=Depth.NAME)
    fitting = {name: block for name, block in blocks.items() if block is not None}
    # Of nested blocks the outer ones.
    return {n: v for n, v in fitting.items() if not any(n.startswith(f"{o}.") for o in fitting)}


def _stacked(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Members of lists and sequences that consist of several layers and have parameters."""
    return [
        (f"{path}.{name}" if path else name, child)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for name, child in module.named_children()
        if any(True for _ in child.children()) and any(True for _ in child.parameters())
    ]


def _first(values: tuple[object, ...]) -> torch.Tensor | None:
    return next((v for v in values if isinstance(v, torch.Tensor)), None)


class _Skipped(nn.Module):
    """Gives its first tensor back."""

    def __init__(self, *, in_tuple: bool) -> None:
        super().__init__()
        self._in_tuple = in_tuple

    def forward(self, *args: object, **kwargs: object) -> object:
        x = _first((*args, *kwargs.values()))
        return (x,) if self._in_tuple else x


def _skip(model: nn.Module, name: str, *, in_tuple: bool) -> None:
    """Put a module that passes its input on in a block's place."""
    try:
        block = model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"the plan takes out {name}, which this model lacks", hint="use its factory"
        ) from error
    skipped = _Skipped(in_tuple=in_tuple)
    for key, value in vars(block).items():  # what a loop over the layers may ask them
        if not key.startswith("_") and isinstance(value, bool | int | float | str) and key != "training":
            setattr(skipped, key, value)
    model.set_submodule(name, skipped)
