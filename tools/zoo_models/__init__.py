"""The zoo's architectures: a name, how to build the module, and how to make a batch of inputs.

Names are ``<origin>/<model>``. torchvision's and timm's come by their own names, transformers' from small
configurations, the rest from this package. Weights are random; :func:`settle` gives batch norms statistics
that fit them.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

Inputs: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model. ``inputs(module, batch)`` makes named inputs; ``batch`` is 1 for the comparison and more
    while batch norms settle (``settle_batch`` of 1 where the first axis is not a batch). ``calm``: norms,
    as a pattern, whose scale starts at a fifth (see :func:`settle`)."""

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[torch.nn.Module, int], Inputs]
    settle_batch: int = 4
    calm: str = ""


def registry() -> dict[str, Architecture]:
    """Every architecture by name, in a fixed order. Imports no model library yet."""
    from zoo_models import images, language, own

    table: dict[str, Architecture] = {}
    for architecture in (*images.ARCHITECTURES, *language.ARCHITECTURES, *own.ARCHITECTURES):
        if architecture.name in table:
            raise ValueError(f"{architecture.name} is there twice")
        table[architecture.name] = architecture
    return table


def settle(architecture: Architecture, module: torch.nn.Module, passes: int = 3) -> None:
    """Let batch norms see ``passes`` random batches: with the initial statistics (mean 0, variance 1)
    activations of a deep random network explode or vanish, and errors would mean nothing.

    Where random residual branches amplify rounding so much that PyTorch's float32 is more than the limit away
    from its own float64, the norms that end the branches (``calm``) start at a fifth of their scale: training
    starts there, too (Goyal et al., "Accurate, large minibatch SGD", 2017, even at zero)."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)  # heads that start at zero would make every output zero
    for name, norm in module.named_modules():
        if architecture.calm and fnmatch.fnmatchcase(name, architecture.calm):
            torch.nn.init.constant_(norm.weight, 0.2)  # type: ignore[arg-type]
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if norms and architecture.settle_batch > 1:
        for norm in norms:
            norm.momentum = None  # a plain average over the passes
            norm.train()
        with torch.no_grad():
            for _ in range(passes):
                module(**architecture.inputs(module, architecture.settle_batch))
    module.eval()


def first_parameter(module: torch.nn.Module) -> str:
    """The name of ``forward``'s first parameter."""
    return next(iter(inspect.signature(module.forward).parameters))
