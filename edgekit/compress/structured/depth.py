"""The step ``depth``: whole layers out of a stack (transformer blocks, residual blocks).

A layer can go if what it returns has the shape of what it takes. Which ones matter least says either how little
they turn their input (block influence, ``1 - cos(in, out)``; Men et al., "ShortGPT", 2024) or the task's metric
without each of them. A removed layer becomes a module that passes its input on, so that the names of the others
stay; nothing of it is exported.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.compress.training.train import Training, fit
from edgekit.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

CRITERIA = ("similarity", "metric")
_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Take the ``share`` of the layers out that matter least.

    ``criterion``: ``similarity`` (of a layer's input and output, over the task's batches where there is a
    task) or ``metric`` (one evaluation of the task for each layer and each removal). ``leave``: layers to keep,
    ``"encoder.layer.0,encoder.layer.5"``.
    """

    NAME: ClassVar[str] = "depth"

    share: float = 0.25
    criterion: str = "similarity"
    leave: str = ""
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"depth with share {self.share}", hint="the share is between 0 and 1")
        if self.criterion not in CRITERIA:
            raise ConfigError(
                f"unknown criterion {self.criterion!r} of depth", hint=f"use {' or '.join(CRITERIA)}"
            )

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Take layers out in place and return ``model``. Raises ``SourceError`` if none can go."""
        if not context.example_inputs:
            raise UsageError("depth needs example inputs", hint="let the factory return (module, inputs)")
        found = _influence(model.eval(), context)
        patterns = [p.strip() for p in self.leave.split(",") if p.strip()]
        layers = {n: v for n, v in found.items() if not any(fnmatch.fnmatchcase(n, p) for p in patterns)}
        count = round(self.share * len(found))
        if not layers or not count:
            raise SourceError(
                f"no layer can be taken out ({len(found)} keep the shape of what they take)",
                hint="leave this step out, or ask for a larger share",
            )
        removed: dict[str, bool] = {}
        for _ in range(min(count, len(layers))):
            name = self._least(model, context, layers)
            removed[name] = layers.pop(name).in_tuple
            _skip(model, name, in_tuple=removed[name])
        context.record({f"{name}|skip": _flag(in_tuple) for name, in_tuple in removed.items()})
        if self.training.epochs:
            fit(model, context.needs_task(self.NAME), self.training, seed=context.seed)
        return model

    def restore(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """Take the same layers out of a fresh module."""
        for key, flag in tensors.items():
            if key.endswith("|skip"):
                _skip(model, key.removesuffix("|skip"), in_tuple=bool(flag))
        return model.eval()

    def _least(self, model: torch.nn.Module, context: Context, layers: Mapping[str, _Layer]) -> str:
        """The layer that matters least among those that are still there."""
        if self.criterion == "similarity":
            return min(layers, key=lambda name: layers[name].influence)
        task, metrics = context.needs_task(self.NAME), {}
        for name, layer in layers.items():
            kept = model.get_submodule(name)
            _skip(model, name, in_tuple=layer.in_tuple)
            metrics[name] = task.metric(model)
            model.set_submodule(name, kept)
        return max(metrics, key=lambda name: metrics[name])


@dataclass(kw_only=True)
class _Layer:
    in_tuple: bool
    influence: float = 0.0
    calls: int = 0


def _influence(model: torch.nn.Module, context: Context) -> dict[str, _Layer]:
    """Layers whose output has the shape of their input, with ``1 - cos`` of the two."""
    import torch

    from edgekit.compress.step import forward

    layers: dict[str, _Layer | None] = {}

    def watch(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            del module
            x, in_tuple = _first((*args, *kwargs.values())), isinstance(out, tuple)
            y = out[0] if in_tuple and len(out) == 1 else out
            known = layers.setdefault(name, _Layer(in_tuple=in_tuple))
            fits = isinstance(y, torch.Tensor) and x is not None and x.shape == y.shape and x.dtype == y.dtype
            if known is None or not fits or x is None:
                layers[name] = None
                return
            cosine = torch.nn.functional.cosine_similarity(x.flatten(1).double(), y.flatten(1).double())
            known.influence = (known.influence * known.calls + 1 - float(cosine.mean())) / (known.calls + 1)
            known.calls += 1

        return hook

    handles = [m.register_forward_hook(watch(n), with_kwargs=True) for n, m in _stacked(model)]
    try:
        with torch.no_grad():
            forward(model, context.example_inputs)
        if context.task is not None:
            context.observe(model, _BATCHES, step=Depth.NAME)
    finally:
        for handle in handles:
            handle.remove()
    fitting = {name: layer for name, layer in layers.items() if layer is not None}
    # Of nested layers the outer ones.
    return {n: v for n, v in fitting.items() if not any(n.startswith(f"{o}.") for o in fitting)}


def influences(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """How much each block that could be taken out turns its input, ``1 - cos(in, out)``, on ``inputs``."""
    from edgekit.compress.step import Context

    if not inputs:
        return {}
    found = _influence(model.eval(), Context(example_inputs=inputs))
    return {name: layer.influence for name, layer in found.items()}


def _stacked(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Members of lists and sequences that consist of several layers and have parameters."""
    import torch

    out = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            for name, child in module.named_children():
                if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                    out.append((f"{path}.{name}" if path else name, child))
    return out


def _first(values: tuple[Any, ...]) -> torch.Tensor | None:
    import torch

    return next((v for v in values if isinstance(v, torch.Tensor)), None)


def _flag(value: bool) -> torch.Tensor:
    import torch

    return torch.tensor(int(value))


def _skip(model: torch.nn.Module, name: str, *, in_tuple: bool) -> None:
    import torch

    class Skip(torch.nn.Module):
        """Gives its first tensor back."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            x = _first((*args, *kwargs.values()))
            return (x,) if in_tuple else x

    try:
        base = model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"the plan takes out {name}, which this model lacks", hint="use its factory"
        ) from error
    made = Skip()
    for key, value in vars(base).items():  # what a loop over the layers may ask them
        if not key.startswith("_") and isinstance(value, bool | int | float | str) and key != "training":
            setattr(made, key, value)
    model.set_submodule(name, made)
