"""What a compression step is, what it may use while it runs, and its options as text.

A step is a frozen dataclass whose fields are its options: the command line, the cache key, the recipe
file and the manifest all come from them. What it does is in another module, which it names: so recipes are read, and
cached results found, without PyTorch. Steps change the module in place or return another; nothing is ever pickled:
weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from edgekit.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.training.task import Task

Scalar = bool | int | float | str
Tensors = Mapping[str, "torch.Tensor"]


class Implementation(Protocol):
    """A module that does what a step says. It may also have ``restore(step, model, tensors) -> model`` and
    ``rehearse(step, model, context) -> model``: what :meth:`Step.restore` and :meth:`Step.rehearse` give."""

    def apply(self, step: Step, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """What :meth:`Step.apply` gives."""
        ...


class Step:
    """One compression step. Subclasses are frozen dataclasses, and a plug-in names their modules
    (:class:`edgekit.core.plugins.Plugin`)."""

    NAME: ClassVar[str]
    IMPLEMENTATION: ClassVar[str]
    """The name of the module that does it (:class:`Implementation`); it may import PyTorch, this one may not."""
    NEEDS_ORIGINAL: ClassVar[bool] = False
    """Whether :attr:`Context.original` has to hold the model as it was before the first step."""
    SOURCES: ClassVar[tuple[str, ...]] = ()
    """Options that are a SOURCE, whose code is executed."""
    SPACE: ClassVar[Mapping[str, tuple[Scalar, ...]] | None] = None
    """What the search under a budget tries, option by option (see :mod:`edgekit.search.space`)."""

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """The compressed model; may be ``model``, changed in place. Leaves it in evaluation mode."""
        module = cast("Implementation", importlib.import_module(self.IMPLEMENTATION))
        return module.apply(self, model, context)

    def restore(self, model: torch.nn.Module, tensors: Tensors) -> torch.nn.Module:
        """Do to a fresh module's *structure* what ``apply`` did, from nothing but the options and the tensors that
        ``apply`` recorded; the weights are loaded afterwards. Lay the constraints that ``apply`` laid
        (:mod:`edgekit.compress.constraints`). A step that did neither has nothing to do."""
        restore = getattr(importlib.import_module(self.IMPLEMENTATION), "restore", None)
        return model if restore is None else restore(self, model, tensors)

    def rehearse(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Raise the ``ComposeError`` that ``apply`` would raise, as far as it can be told before any training, and lay
        constraints of the kinds that it would lay. ``model`` has the structure and the weights of before the
        first step; neither is changed."""
        rehearse = getattr(importlib.import_module(self.IMPLEMENTATION), "rehearse", None)
        return model if rehearse is None else rehearse(self, model, context)

    @property
    def learns_from_original(self) -> bool:
        """Whether :attr:`Context.original` has to hold the model as it was before the first step: as a teacher."""
        return self.NEEDS_ORIGINAL or bool(options(self).get("training.teacher"))

    @property
    def starts_anew(self) -> bool:
        """Whether what comes out is another network, which no step before has changed."""
        return False


@dataclass(frozen=True, kw_only=True)
class Context:
    """What steps may use. ``tensors`` collects what they :meth:`record` for the plan: within a step under
    the step's own names, after :func:`edgekit.compress.run.run` with the step's number in front
    (``"0/fc1.mask"``). ``original`` is a frozen copy of the model before the first step, for steps that need it.
    """

    task: Task | None = None
    example_inputs: Tensors = field(default_factory=dict)
    seed: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    original: torch.nn.Module | None = None

    def needs_task(self, step: str) -> Task:
        """The task. Raises ``UsageError`` when a step wants to train and there is none."""
        if self.task is None:
            raise UsageError(
                f"{step} trains, and there is nothing to train on",
                hint="give a task (data, loss and metric), or set training.epochs=0",
            )
        return self.task

    def needs_example(self, step: str) -> Tensors:
        """The example inputs. Raises ``UsageError`` when a step has to run the model and there are none."""
        if not self.example_inputs:
            raise UsageError(f"{step} needs example inputs", hint="let the factory return (module, inputs)")
        return self.example_inputs

    def observe(self, model: torch.nn.Module, batches: int, *, step: str) -> None:
        """Run ``model`` on the task's first training batches, without gradients, so that hooks see activations."""
        import torch

        task = self.needs_task(step)
        model.eval()
        with torch.no_grad():
            for _, batch in zip(range(batches), task.batches(0, self.seed), strict=False):
                task.loss(model, batch)

    def record(self, tensors: Tensors) -> None:
        """Keep tensors that describe what was done, under names that say which layer they belong to."""
        self.tensors.update({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Size:
    """Weights of a model: all, those that are not zero, multiply-accumulates of one forward, bytes."""

    parameters: int
    nonzero: int
    macs: int
    bytes: int
    metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step: as spelled, before and after, seconds."""

    step: str
    key: str
    before: Size
    after: Size
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """A recipe's run."""

    metric: str
    steps: tuple[StepReport, ...]


def rebuild(step: Step, model: torch.nn.Module, tensors: Tensors, weights: Tensors | None) -> torch.nn.Module:
    """Give ``model`` the structure that ``step`` gave it when it recorded ``tensors``; then load ``weights``.

    Raises ``SourceError`` when the weights do not fit: the model is not the one that was compressed.
    """
    model = step.restore(model, tensors)
    if weights is not None:
        try:
            model.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise SourceError(
                f"the weights after {spell(step)} do not fit the model: {str(error).splitlines()[-1].strip()}",
                hint="the source has changed since it was compressed: compress it again",
            ) from error
    return model.eval()


def forward(model: torch.nn.Module, inputs: Tensors) -> object:
    """Call ``model`` with inputs by name, or in their order where its ``forward`` knows them by others."""
    from edgekit.graph.nested import invoke

    parameters = inspect.signature(model.forward).parameters
    by_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or set(inputs) <= set(parameters)
    return invoke(model, inputs) if by_name else model(*inputs.values())


def options(step: object) -> dict[str, Scalar]:
    """The fields of a step, a dataclass, as flat options; nested ones with dots (``training.epochs``)."""
    assert dataclasses.is_dataclass(step)
    flat: dict[str, Scalar] = {}
    for f in dataclasses.fields(step):
        value = getattr(step, f.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{f.name}.{k}": v for k, v in options(value).items()}
        else:
            flat[f.name] = value
    return flat


def spell(step: Step) -> str:
    """How the command line spells a step: its name and the options that differ from their defaults."""
    default = options(type(step)())
    changed = {k: v for k, v in options(step).items() if v != default[k]}
    inner = ";".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in changed.items())
    return f"{step.NAME}({inner})" if inner else step.NAME


def choice(step: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless ``value`` is one of the ``choices`` of an option."""
    if value not in choices:
        raise ConfigError(f"unknown {option} {value!r} of {step}", hint=f"use {', '.join(choices)}")
