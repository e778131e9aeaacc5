"""What a compression step is, how a recipe of them runs, and what is written down about it.

A step is a frozen dataclass whose fields are its options: the command line, the cache key, the recipe
file and the manifest all come from them. Steps change the module in place or return another; nothing is
ever pickled: weights are safetensors, the rest is JSON.

Beside ``NAME`` and ``apply`` a step may have:

- ``restore(model, tensors) -> model``: for a step that changes the module's *structure*. Does to a fresh
  module what ``apply`` did to its structure, from nothing but the options and the tensors that ``apply``
  recorded; the weights are loaded afterwards. A step without it leaves every name and shape as it was.
- ``NEEDS_ORIGINAL = True``: :attr:`Context.original` then holds the model as it was before the first step.
- ``SPACE``: what the search under a budget tries, option by option (see :mod:`edgekit.search.space`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgekit.core.structure import structure
from edgekit.errors import ConfigError, DataError, SourceError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.training.train import Task

Scalar = bool | int | float | str
PLAN, WEIGHTS, TENSORS = "plan.json", "weights.safetensors", "plan.safetensors"
_VERSION = 1


class Step(Protocol):
    """One compression step. Implementations are frozen dataclasses, registered in :func:`registry`."""

    NAME: ClassVar[str]

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """The compressed model; may be ``model``, changed in place. Leaves it in evaluation mode."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """What steps may use. ``tensors`` collects what they :meth:`record` for the plan: within a step under
    the step's own names, after :func:`run` with the step's number in front (``"0/fc1.mask"``).
    ``original`` is a frozen copy of the model before the first step, for steps that say they need it.
    """

    task: Task | None = None
    example_inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
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

    def observe(self, model: torch.nn.Module, batches: int, *, step: str) -> None:
        """Run ``model`` on the task's first training batches, without gradients, so that hooks see activations."""
        import torch

        task = self.needs_task(step)
        model.eval()
        with torch.no_grad():
            for _, batch in zip(range(batches), task.batches(0, self.seed), strict=False):
                task.loss(model, batch)

    def record(self, tensors: Mapping[str, torch.Tensor]) -> None:
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
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """A recipe's run."""

    metric: str
    steps: tuple[StepReport, ...]


def registry() -> dict[str, type[Any]]:
    """The built-in steps by name."""
    from edgekit.compress.steps.cluster import Cluster
    from edgekit.compress.steps.distill import Distill
    from edgekit.compress.steps.fold import Fold
    from edgekit.compress.steps.low_rank import LowRank
    from edgekit.compress.steps.prune import Prune
    from edgekit.compress.steps.qat import Qat
    from edgekit.compress.steps.sparsify import Sparsify
    from edgekit.compress.structured.depth import Depth
    from edgekit.compress.structured.shrink import Shrink

    return {s.NAME: s for s in (Prune, Cluster, Distill, Fold, LowRank, Qat, Shrink, Sparsify, Depth)}


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
    """
    from edgekit.compress.training import resume

    if context.original is None and any(getattr(s, "NEEDS_ORIGINAL", False) for s in steps):
        context = dataclasses.replace(context, original=_frozen(model))
    reports: list[StepReport] = []
    judge = context if judged else dataclasses.replace(context, task=None)
    before = measure(model, judge)
    for number, step in enumerate(steps):
        key = cache_key(step, model, context)
        own = dataclasses.replace(context, tensors={})
        begin = time.perf_counter()
        found = resume.finished(work, key)
        if found is not None:
            own.tensors.update(found.tensors)
            model, after = rebuild(step, model, found.tensors, found.weights), found.size
            if after.metric is None and judge.task is not None:
                after = measure(model, judge)
        else:
            with resume.resumable(work, key):
                model = step.apply(model, own).eval()
            after = measure(model, judge)
            resume.keep(
                work, key, resume.Finished(weights=model.state_dict(), tensors=own.tensors, size=after)
            )
        _in_order(model)
        context.tensors.update({f"{number}/{name}": tensor for name, tensor in own.tensors.items()})
        seconds = time.perf_counter() - begin
        reports.append(StepReport(step=spell(step), key=key, before=before, after=after, seconds=seconds))
        before = after
    name = context.task.metric_name if context.task is not None else ""
    return model, CompressionReport(metric=name, steps=tuple(reports))


def rebuild(
    step: Step,
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None,
) -> torch.nn.Module:
    """Give ``model`` the structure that ``step`` gave it when it recorded ``tensors``; then load ``weights``.

    Raises ``SourceError`` when the weights do not fit: the model is not the one that was compressed.
    """
    restore = getattr(step, "restore", None)
    if restore is not None:
        model = restore(model, tensors)
    if weights is not None:
        try:
            model.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise SourceError(
                f"the weights after {spell(step)} do not fit the model: {str(error).splitlines()[-1].strip()}",
                hint="the source has changed since it was compressed: compress it again",
            ) from error
    return model.eval()


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


def forward(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Call ``model`` with inputs by name, or in their order where its ``forward`` knows them by others."""
    parameters = inspect.signature(model.forward).parameters
    by_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or set(inputs) <= set(parameters)
    return model(**inputs) if by_name else model(*inputs.values())


def measure(model: torch.nn.Module, context: Context) -> Size:
    """Size and quality. MACs need example inputs, the metric a task."""
    import torch

    from edgekit.compress import counting

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


def options(step: Any) -> dict[str, Scalar]:
    """The fields of a step as flat options; nested ones with dots (``training.epochs``)."""
    out: dict[str, Scalar] = {}
    for f in dataclasses.fields(step):
        value = getattr(step, f.name)
        if dataclasses.is_dataclass(value):
            out |= {f"{f.name}.{k}": v for k, v in options(value).items()}
        else:
            out[f.name] = value
    return out


def spell(step: Step) -> str:
    """How the command line spells a step: its name and the options that differ from their defaults."""
    default = options(type(step)())
    changed = {k: v for k, v in options(step).items() if v != default[k]}
    inner = ";".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in changed.items())
    return f"{step.NAME}({inner})" if inner else step.NAME


def parse(text: str) -> Step:
    """The step that ``name(option=value;option=value)`` spells. Raises ``ConfigError`` and ``UnknownNameError``."""
    name, paren, rest = text.strip().partition("(")
    if paren and not rest.endswith(")"):
        raise ConfigError(
            f"{text!r} lacks its closing parenthesis", hint="write name(option=value;option=value)"
        )
    kinds = registry()
    if name not in kinds:
        raise UnknownNameError("step", name, kinds)
    known = options(kinds[name]())
    given: dict[str, Scalar] = {}
    for item in filter(None, rest.removesuffix(")").split(";")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"{item!r} is no option of {name}", hint="write option=value")
        if key not in known:
            raise UnknownNameError(f"option of {name}", key, known)
        given[key] = _scalar(name, key, value.strip(), known[key])
    return from_options(name, given)


def from_options(name: str, given: Mapping[str, Scalar]) -> Step:
    """A step from flat options, as :func:`options` gives them."""
    kind = registry()[name]
    nested: dict[str, Any] = {}
    for key, value in (options(kind()) | dict(given)).items():
        head, dot, tail = key.partition(".")
        if dot:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[head] = value
    step: Step = structure(kind, nested, where=name)
    return step


def cache_key(step: Step, model: torch.nn.Module, context: Context) -> str:
    """sha256 over everything the result depends on: options, weights, task, seed, versions."""
    import torch

    digest = hashlib.sha256(spell(step).encode())
    facts = (context.seed, context.task.fingerprint if context.task else "", str(torch.__version__), _VERSION)
    digest.update(repr(facts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + str(tensor.dtype).encode() + repr(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source that was compressed. ``path`` is relative to the plan's folder where that is possible."""

    text: str
    kind: str
    path: str = ""
    attribute: str = ""


def save(
    folder: Path,
    model: torch.nn.Module,
    steps: Sequence[Step],
    report: CompressionReport,
    context: Context,
    *,
    origin: Origin | None = None,
) -> None:
    """Write the plan: the recipe and report as JSON, the weights and what steps recorded as safetensors.

    The same recipe, seed and source give the same bytes: how long steps took is not written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    for name, tensors in ((WEIGHTS, state), (TENSORS, context.tensors)):
        temporary = folder / f".{name}.part"
        save_file(dict(sorted(tensors.items())), temporary)
        temporary.replace(folder / name)
    told = dataclasses.asdict(report)
    for row in told["steps"]:
        del row["seconds"]
    document = {
        "version": _VERSION,
        "seed": context.seed,
        "steps": [{"name": s.NAME, "options": options(s)} for s in steps],
        "report": told,
    }
    if origin is not None:
        document["source"] = dataclasses.asdict(origin)
    temporary = folder / f".{PLAN}.part"
    temporary.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    temporary.replace(folder / PLAN)


def load_steps(folder: Path) -> tuple[Step, ...]:
    """The recipe of a saved plan. Raises ``ConfigError`` if it is none."""
    try:
        rows = json.loads((folder / PLAN).read_text())["steps"]
        pairs = [(str(row["name"]), dict(row["options"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} holds no compression plan", hint=f"it needs a {PLAN}") from error
    known = registry()
    for name, _ in pairs:
        if name not in known:
            raise UnknownNameError("step", name, known)
    return tuple(from_options(name, given) for name, given in pairs)


def _scalar(step: str, key: str, text: str, like: Scalar) -> Scalar:
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, int | float):
            return type(like)(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{key}={text} of {step} is not a {type(like).__name__}", hint=f"the default is {key}={like}"
        ) from error
    return text
