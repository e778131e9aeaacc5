"""What a compression step is, how a recipe of them runs, and what is written down about it.

A step is a frozen dataclass whose fields are its options: the command line, the cache key, the recipe
file and the manifest all come from them. Steps change the module in place or return another; nothing is
ever pickled: weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgekit.errors import ConfigError, UnknownNameError, UsageError
from edgekit.structure import structure

if TYPE_CHECKING:
    import torch

    from edgekit.compress.train import Task

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
    """What steps may use. ``tensors`` collects what they :meth:`record` for the plan."""

    task: Task | None = None
    example_inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seed: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def needs_task(self, step: str) -> Task:
        """The task. Raises ``UsageError`` when a step wants to train and there is none."""
        if self.task is None:
            raise UsageError(
                f"{step} trains, and there is nothing to train on",
                hint="give a task (data, loss and metric), or set training.epochs=0",
            )
        return self.task

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
    from edgekit.compress.cluster import Cluster
    from edgekit.compress.prune import Prune

    return {s.NAME: s for s in (Prune, Cluster)}


def run(
    model: torch.nn.Module, steps: Sequence[Step], context: Context
) -> tuple[torch.nn.Module, CompressionReport]:
    """Apply ``steps`` in order, measuring before and after each."""
    reports = []
    before = measure(model, context)
    for step in steps:
        key = cache_key(step, model, context)
        begin = time.perf_counter()
        model = step.apply(model, context).eval()
        seconds = time.perf_counter() - begin
        after = measure(model, context)
        reports.append(StepReport(step=spell(step), key=key, before=before, after=after, seconds=seconds))
        before = after
    name = context.task.metric_name if context.task is not None else ""
    return model, CompressionReport(metric=name, steps=tuple(reports))


def measure(model: torch.nn.Module, context: Context) -> Size:
    """Size and quality. MACs need example inputs, the metric a task."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    weights = list(model.state_dict().values())
    macs = 0
    if context.example_inputs:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*context.example_inputs.values())
        macs = counter.get_total_flops() // 2
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        nonzero=sum(int(torch.count_nonzero(p)) for p in model.parameters()),
        macs=macs,
        bytes=sum(w.numel() * w.element_size() for w in weights),
        metric=context.task.metric(model) if context.task is not None else None,
    )


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
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + str(tensor.dtype).encode() + repr(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(
    folder: Path, model: torch.nn.Module, steps: Sequence[Step], report: CompressionReport, context: Context
) -> None:
    """Write the plan: the recipe and report as JSON, the weights and what steps recorded as safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    for name, tensors in ((WEIGHTS, state), (TENSORS, context.tensors)):
        temporary = folder / f".{name}.part"
        save_file(dict(sorted(tensors.items())), temporary)
        temporary.replace(folder / name)
    document = {
        "version": _VERSION,
        "seed": context.seed,
        "steps": [{"name": s.NAME, "options": options(s)} for s in steps],
        "report": dataclasses.asdict(report),
    }
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
