"""A module of which some inputs are constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from edgekit.graph.nested import Adapter, invoke

if TYPE_CHECKING:
    from edgekit.types import Array


class Bound(Adapter):
    """``module`` called with ``names`` in their order, ``constants`` among them.

    A single number is made anew in each call, so that a trace may branch on it, as ``if rate == 16000`` does; others
    are buffers.
    """

    def __init__(
        self, module: torch.nn.Module, names: tuple[str, ...], constants: Mapping[str, Array]
    ) -> None:
        torch.nn.Module.__init__(self)
        self.module = module
        self._names = names
        scripted = any(isinstance(m, torch.jit.ScriptModule) for m in module.modules())
        self._numbers = {} if scripted else {n: a for n, a in constants.items() if a.size == 1}
        self._places: dict[str, str] = {}
        for index, name in enumerate(n for n in constants if n not in self._numbers):
            self._places[name] = f"bound_{index}"
            self.register_buffer(self._places[name], torch.from_numpy(constants[name].copy()))
        self.training = False

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Call the module with the constants in their places."""
        return invoke(self.module, {name: self._given(name, inputs) for name in self._names})

    def _given(self, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name in inputs:
            return inputs[name]
        if name in self._numbers:
            array = self._numbers[name]
            return torch.tensor(array.tolist(), dtype=getattr(torch, array.dtype.name))
        buffer: torch.Tensor = getattr(self, self._places[name])
        return buffer.clone()  # forward may write into it
