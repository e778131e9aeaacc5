"""A plan folder as a source: the factory that it names, its steps' structure, its weights.

``plan.json`` names code: the factory of the source that was compressed. A plan that was not written on this
machine is therefore loaded only when the user says that they trust it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.compress.step import PLAN, TENSORS, WEIGHTS, Origin, Step, load_steps, rebuild
from edgekit.core.store import Store
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, SourceError, UntrustedSourceError
from edgekit.load import load as load_source
from edgekit.load import parse
from edgekit.types import Permit, SourceSpec, TorchModel, sha256_bytes

if TYPE_CHECKING:
    import torch

_NOTE = "plan"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``plan.json`` says. ``report`` is that of the run, without times."""

    folder: Path
    steps: tuple[Step, ...]
    origin: Origin
    report: Any

    @property
    def source(self) -> str:
        """The original source as the command line spells it, found from the plan's folder."""
        origin = self.origin
        if not origin.path:
            return origin.text
        path = (self.folder / origin.path).resolve()
        try:
            text = str(path.relative_to(Path.cwd()))
        except ValueError:
            text = str(path)
        if origin.kind == "hf":
            return f"hf:{text}"
        return f"{text}:{origin.attribute}" if origin.kind == "factory" else text


def origin(spec: SourceSpec, folder: Path) -> Origin:
    """How a plan in ``folder`` names the source ``spec``. Raises ``SourceError`` for what is no module."""
    import os

    if spec.kind in ("onnx", "savedmodel", "keras"):
        raise SourceError(
            f"{spec.text} is a graph, not a PyTorch module: steps have nothing to change in it",
            hint="give the factory of the module it was exported from; a graph can be quantized (edgekit build)",
        )
    path = os.path.relpath(spec.path.resolve(), folder.resolve()) if spec.path is not None else ""
    return Origin(
        text=spec.text, kind=spec.kind, path=Path(path).as_posix() if path else "", attribute=spec.attribute
    )


def read(folder: Path) -> Plan:
    """The plan in ``folder``. Raises ``ConfigError``/``UnknownNameError`` if there is none that can be read."""
    steps = load_steps(folder)
    document = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    if not isinstance(document.get("source"), dict):
        raise ConfigError(
            f"{folder / PLAN} does not say which source it is of",
            hint="compress with edgekit compress, or pass origin to save()",
        )
    source = structure(Origin, document["source"], where=str(folder / PLAN))
    return Plan(folder=folder, steps=steps, origin=source, report=document.get("report", {}))


def remember(folder: Path, store: Store | None = None) -> None:
    """Note that this machine wrote the plan: it may name code here."""
    (store or Store()).remember(_NOTE, _identity(folder), True)


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """The compressed model: the original source, each step's structure, then the weights.

    Raises ``UntrustedSourceError`` for a plan that is not from this machine unless ``trust``, and
    ``SourceError`` when the original source is gone or has changed its layers.
    """
    assert spec.path is not None
    plan = read(spec.path)
    if not permit.trust and not Store().recall(_NOTE, _identity(spec.path)):
        raise UntrustedSourceError(
            f"{spec.text} was not compressed on this machine, and names code to run: {plan.source}",
            hint="look at that code, then pass --trust",
        )
    model = load_source(parse(plan.source), trust=permit.trust, network=permit.network)
    if not isinstance(model, TorchModel):
        raise SourceError(f"{plan.source} is not a PyTorch module", hint="compress it again")
    return replace(model, module=restore(model.module, plan))


def restore(module: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """Give a fresh module of the original source the plan's structure and weights."""
    return rebuilt(module, plan.steps, _tensors(plan.folder / TENSORS), _tensors(plan.folder / WEIGHTS))


def rebuilt(
    module: torch.nn.Module,
    steps: Sequence[Step],
    tensors: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
) -> torch.nn.Module:
    """The same from what :func:`edgekit.compress.step.run` left in its context, and the weights in the end."""
    for number, step in enumerate(steps):
        prefix = f"{number}/"
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module = rebuild(step, module, own, weights if number == len(steps) - 1 else None)
    return module


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        loaded: dict[str, torch.Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="compress again") from error
    return loaded


def _identity(folder: Path) -> str:
    try:
        return sha256_bytes((folder / PLAN).read_bytes())
    except OSError as error:
        raise ConfigError(f"{folder} holds no compression plan", hint=f"it needs a {PLAN}") from error
