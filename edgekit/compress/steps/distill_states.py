"""Inner states for distillation: which modules of student and teacher belong together, and their losses.

``features``: mean squared error of states normalised to unit root mean square, after a linear map where the
widths differ (Romero et al., "FitNets", ICLR 2015; Jiao et al., "TinyBERT", 2020). ``attention``: for images
the map of activation energies over places (Zagoruyko & Komodakis, "Paying more attention to attention", ICLR
2017); for token sequences the attention of states to each other, ``softmax(H·Hᵀ/√d)`` as Kullback-Leibler
divergence, which needs no equal number of heads (after Wang et al., "MiniLM", 2020).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.hooks import Weighted
from edgekit.compress.steps.distill import Distill
from edgekit.compress.training.task import Task
from edgekit.compress.training.teacher import Watch
from edgekit.errors import ConfigError, SourceError


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two modules by name whose outputs are matched."""

    student: str
    teacher: str

    @property
    def key(self) -> str:
        """A name that a module dictionary takes."""
        return self.student.replace(".", "/")


def find_pairs(student: nn.Module, teacher: nn.Module, text: str) -> tuple[Pair, ...]:
    """The pairs that ``text`` names, or the last of each share of the teacher's stack for each student's block.

    Raises ``ConfigError`` for names that are none and where no stack of blocks is found.
    """
    names = (dict(student.named_modules()), dict(teacher.named_modules()))
    if text:
        pairs = []
        for item in filter(None, text.split(",")):
            first, _, second = item.partition("=")
            for name, known in zip((first, second), names, strict=True):
                if name not in known:
                    raise ConfigError(
                        f"there is no module {name!r}", hint="pairs are student.module=teacher.module,…"
                    )
            pairs.append(Pair(student=first, teacher=second))
        return tuple(pairs)
    own, other = stack(student), stack(teacher)
    if not own or not other:
        raise ConfigError(
            "no stack of blocks to match was found in student and teacher",
            hint="name the pairs: pairs=student.module=teacher.module,…",
        )
    share = len(other) / len(own)
    return tuple(
        Pair(student=name, teacher=other[min(len(other) - 1, round((i + 1) * share) - 1)])
        for i, name in enumerate(own)
    )


def stack(model: nn.Module) -> list[str]:
    """Names of the blocks of the longest run of numbered siblings of one class: a network's repeated part.

    Where there is none of three (plain CNNs), the stages: children that hold convolutions.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if re.fullmatch(r"\d+", last) and next(module.children(), None) is not None:
            groups.setdefault((parent, type(module).__name__), []).append(name)
    best = max(groups.values(), key=len, default=[])
    if len(best) >= 3:
        return best
    stages = [n for n, m in model.named_children() if any(isinstance(x, Weighted) for x in m.modules())]
    return stages[:-1] if len(stages) > 1 else best


def state_loss(
    step: Distill, learner: nn.Module, pairs: Sequence[Pair], own: Watch, other: Watch
) -> torch.Tensor:
    """The mean over the pairs of the feature and attention losses, weighted as ``step`` says."""
    maps = dict(learner.get_submodule("maps").named_children())
    losses = []
    for pair in pairs:
        student, teacher = own.states.get(pair.student), other.states.get(pair.teacher)
        if student is None or teacher is None:
            raise SourceError(
                f"{pair.student} or {pair.teacher} was not run, or gives no floats", hint="choose other pairs"
            )
        if step.features:
            moved = maps[pair.key](_last(student)) if pair.key in maps else _last(student)
            losses.append(step.features * feature_loss(moved, _last(teacher)))
        if step.attention:
            losses.append(step.attention * attention_loss(student, teacher))
    return torch.stack(losses).sum() / len(pairs)


def feature_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error between states of unit root mean square, channels last."""
    if student.shape[1:-1] != teacher.shape[1:-1]:
        raise SourceError(
            f"states of {list(student.shape)} and {list(teacher.shape)} do not match",
            hint="pair modules that work at the same resolution",
        )
    return functional.mse_loss(_unit(student), _unit(teacher))


def attention_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Energy maps of images ``[N, C, H, W]``, attention between tokens ``[N, T, D]``."""
    if student.ndim == 3 and teacher.ndim == 3:
        own, other = (
            functional.log_softmax(x @ x.transpose(1, 2) / x.shape[-1] ** 0.5, -1) for x in (student, teacher)
        )
        return functional.kl_div(own, other, reduction="none", log_target=True).sum(-1).mean()

    def energy(x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x.square().mean(1).flatten(1), dim=1)

    if student.ndim < 3 or student.shape[2:] != teacher.shape[2:]:
        raise SourceError(
            f"attention of {list(student.shape)} and {list(teacher.shape)} cannot be compared",
            hint="pair modules that give images or token sequences of one size",
        )
    return (energy(student) - energy(teacher)).square().sum(1).mean()


def projections(
    student: nn.Module, teacher: nn.Module, pairs: Sequence[Pair], task: Task, seed: int
) -> Mapping[str, nn.Module]:
    """A linear map for each pair whose widths differ; found by running one batch."""
    batch = next(iter(task.batches(0, seed)), None)
    if batch is None:
        return {}
    with torch.no_grad():
        with Watch(student.eval(), [p.student for p in pairs]) as own:
            task.loss(student, batch)
        with Watch(teacher, [p.teacher for p in pairs]) as other:
            teacher(*own.args, **own.kwargs)
    maps: dict[str, nn.Module] = {}
    torch.manual_seed(seed)  # the maps start at random
    for pair in pairs:
        if pair.student in own.states and pair.teacher in other.states:
            narrow, wide = (
                _last(w.states[n]).shape[-1] for w, n in ((own, pair.student), (other, pair.teacher))
            )
            if narrow != wide:
                maps[pair.key] = nn.Linear(narrow, wide, bias=False)
    return maps


def _last(state: torch.Tensor) -> torch.Tensor:
    """Channels last: images have them second."""
    return state.movedim(1, -1) if state.ndim >= 4 else state


def _unit(state: torch.Tensor) -> torch.Tensor:
    return state * state.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
