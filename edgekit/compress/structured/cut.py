"""Cut units out of a module in place: parameters, buffers, and the sizes that modules keep in attributes.

Attributes of PyTorch's own layers follow from their weights. Attributes of other modules (``num_heads``,
``split_size``, ``all_head_size``) are those integers that equal a size that the trace saw in this module and that
changed. Whether that was right is found out by running: see :mod:`edgekit.compress.structured.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from edgekit.compress import constraints
from edgekit.compress.structured.groups import Alive, Analysis, Place
from edgekit.compress.structured.labels import Ids
from edgekit.errors import ConfigError

Value = int | tuple[int, ...]
Attribute = tuple[str, str]
"""A module's path and the name of one of its attributes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to cut: for each place the indices that stay, and the new values of attributes."""

    kept: Mapping[Place, Ids]
    attributes: Mapping[Attribute, Value]

    def tensors(self) -> dict[str, torch.Tensor]:
        """As tensors for safetensors: ``NAME|DIM|keep`` and ``PATH|NAME|value``."""
        out = {f"{name}|{dim}|keep": torch.from_numpy(ids.copy()) for (name, dim), ids in self.kept.items()}
        for (path, name), value in self.attributes.items():
            out[f"{path}|{name}|value"] = torch.tensor(value, dtype=torch.int64)
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Plan:
        """The inverse; other tensors are passed over."""
        kept: dict[Place, Ids] = {}
        attributes: dict[Attribute, Value] = {}
        for key, tensor in tensors.items():
            head, _, kind = key.rpartition("|")
            path, _, last = head.rpartition("|")
            if kind == "keep" and last.isdigit():
                kept[path, int(last)] = tensor.numpy().astype(np.int64)
            elif kind == "value":
                attributes[path, last] = tuple(tensor.tolist()) if tensor.ndim else int(tensor)
        return cls(kept=kept, attributes=attributes)

    def then(self, later: Plan) -> Plan:
        """This plan and, on its result, another, as one."""
        kept = dict(self.kept)
        for place, ids in later.kept.items():
            kept[place] = kept[place][ids] if place in kept else ids
        return Plan(kept=kept, attributes={**self.attributes, **later.attributes})


@dataclass(kw_only=True)
class Undo:
    """What :func:`apply` replaced."""

    data: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    attributes: list[tuple[torch.nn.Module, str, Any]] = field(default_factory=list)
    constraints: list[tuple[torch.nn.Module, tuple[constraints.Constraint, ...]]] = field(
        default_factory=list
    )

    def __call__(self) -> None:
        """Put everything back."""
        for tensor, data in reversed(self.data):
            tensor.data = data
        for module, name, value in reversed(self.attributes):
            setattr(module, name, value)
        for module, before in reversed(self.constraints):
            constraints.put_back(module, before)


def plan(
    model: torch.nn.Module, analysis: Analysis, alive: Alive, leave: frozenset[Attribute] = frozenset()
) -> Plan:
    """The plan that cuts what is not ``alive``; attributes in ``leave`` keep their values."""
    attributes = {k: v for k, v in followers(model, analysis, alive).items() if k not in leave}
    return Plan(kept=analysis.kept(alive), attributes=attributes)


def followers(model: torch.nn.Module, analysis: Analysis, alive: Alive) -> dict[Attribute, Value]:
    """Attributes that hold a size which changes, with their new values."""
    modules = dict(model.named_modules())
    changes: dict[str, dict[int, int]] = {}
    for scope, size, ids in analysis.constants:
        left = int(np.count_nonzero(alive[ids]))
        # The innermost module that holds such a number is the one whose code used it.
        holders = (path for path in reversed(scope) if size in _numbers(modules[path]))
        path = next(holders, None) if left != size else None
        if path is not None:
            changes.setdefault(path, {}).setdefault(size, left)
    out: dict[Attribute, Value] = {}
    for path, sizes in changes.items():
        for name, value in _sizes(modules[path]):
            new = sizes.get(value, value) if isinstance(value, int) else tuple(sizes.get(v, v) for v in value)
            if new != value:
                out[path, name] = new
    return out


def _numbers(module: torch.nn.Module) -> set[int]:
    values = [v for _, v in _sizes(module)]
    return {n for v in values for n in ((v,) if isinstance(v, int) else v)}


def _sizes(module: torch.nn.Module) -> Iterator[tuple[str, Value]]:
    """The attributes of a module that may be sizes which its Python code uses."""
    only = {"GroupNorm": "num_groups"}.get(type(module).__name__, "")
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        only = "groups"
    ours = type(module).__module__.startswith("torch.nn.")
    for name, value in vars(module).items():
        if (ours and name != only) or name.startswith("_") or name == "training":
            continue
        if (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, tuple) and value and all(type(v) is int for v in value)
        ):
            yield name, value


def apply(model: torch.nn.Module, cut: Plan) -> Undo:
    """Cut in place; call the result to take it back. Raises ``ConfigError`` if the plan is another model's."""
    undo = Undo()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    by_name: dict[str, list[tuple[int, Ids]]] = {}
    for (name, dim), ids in cut.kept.items():
        by_name.setdefault(name, []).append((dim, ids))
    modules = dict(model.named_modules())
    constrained = [layer for layer in modules.values() if constraints.of(layer)]
    for name, cuts in by_name.items():
        tensor = tensors.get(name)
        if tensor is None or any(
            d >= tensor.ndim or ids.max(initial=-1) >= tensor.shape[d] for d, ids in cuts
        ):
            undo()
            raise ConfigError(
                f"the plan cuts {name}, which this model does not have so", hint="use its factory"
            )
        data = tensor.data
        for dim, ids in cuts:
            kept = torch.from_numpy(ids)
            data = data.index_select(dim, kept.to(data.device))
            for layer in constrained:
                if layer._parameters.get("weight") is tensor:
                    undo.constraints.append((layer, constraints.cut(layer, dim, kept)))
        undo.data.append((tensor, tensor.data))
        tensor.data = data.contiguous()
        tensor.grad = None  # it has the old shape
    for (path, name), value in cut.attributes.items():
        if not isinstance(getattr(modules.get(path), name, None), int | tuple):
            undo()
            raise ConfigError(f"the plan sets {path}.{name}, which this model lacks", hint="use its factory")
        _set(undo, modules[path], name, value)
    for module in modules.values():
        _settle(undo, module)
    return undo


def _set(undo: Undo, module: torch.nn.Module, name: str, value: Any) -> None:
    before = getattr(module, name)
    if before != value:
        undo.attributes.append((module, name, before))
        setattr(module, name, value)


def _settle(undo: Undo, module: torch.nn.Module) -> None:
    """Let the attributes of PyTorch's layers say what their weights are."""
    nn = torch.nn
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()
    if isinstance(module, nn.Linear):
        new: dict[str, Any] = {"out_features": shape[0], "in_features": shape[1]}
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = shape[0], shape[1] * module.groups
        pair = (first, second) if module.transposed else (second, first)
        new = {"in_channels": pair[0], "out_channels": pair[1]}
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = weight if weight is not None else module.running_mean
        new = {"num_features": len(known)} if known is not None else {}
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        new = {"normalized_shape": shape} if shape else {}
    elif isinstance(module, nn.GroupNorm):
        new = {"num_channels": shape[0]} if shape else {}
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        new = {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    elif isinstance(module, nn.RNNBase):
        into, back = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        new = {"input_size": into.shape[1], "hidden_size": back.shape[0] // gates}
        if module.proj_size:
            new["proj_size"] = back.shape[1]
    elif isinstance(module, nn.RNNCellBase):
        new = {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    elif isinstance(module, nn.PReLU):
        new = {"num_parameters": shape[0]}
    else:
        new = {}
    for name, value in new.items():
        _set(undo, module, name, value)
