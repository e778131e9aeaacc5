"""A tiny network, its task, and what an exported graph says of its weights: for the tests of steps that compose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit.graph.export import export_with_report
from edgekit.types import TorchModel

CLASSES = 4


class Net(torch.nn.Module):
    """A convolution, a stack of three blocks and two linear layers; ``norms``: with batch norms that can be folded."""

    def __init__(self, *, norms: bool = True) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(4, 16, 3, padding=1)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(16, 16),
                torch.nn.BatchNorm1d(16) if norms else torch.nn.Identity(),
                torch.nn.ReLU(),
            )
            for _ in range(3)
        )
        self.hidden, self.head = torch.nn.Linear(16, 32), torch.nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x)).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.relu(self.hidden(x)))


def net(*, norms: bool = True) -> torch.nn.Module:
    """The same weights each time; the norms have statistics, and factors of both signs."""
    torch.manual_seed(0)
    model = Net(norms=norms).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.weight, 0.8, 0.4)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


class Task:
    """Random inputs with a class each. ``trained`` counts the losses whose gradients can be taken; from the one number
    ``stop_at`` on it raises ``KeyboardInterrupt``."""

    metric_name, fingerprint = "accuracy", "compose"

    def __init__(self, stop_at: int = 0) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.arange(64) % CLASSES
        self.x = torch.randn(64, CLASSES, 4, 4, generator=random)
        self.x += 2 * torch.eye(CLASSES)[self.y][:, :, None, None]
        self.stop_at, self.trained = stop_at, 0

    def steps(self) -> int:
        return 4

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed + epoch))
        yield from ((self.x[pick], self.y[pick]) for pick in order.split(16))

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.trained += torch.is_grad_enabled()
        if self.stop_at and self.trained == self.stop_at:
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.x).argmax(1) == self.y).float().mean())


@dataclass(frozen=True)
class Weight:
    """A weight that a graph multiplies by, ``[outputs, inputs, …]``: its numbers, and the integers that they come
    from."""

    values: NDArray[np.float32]
    integers: NDArray[np.int8] | None

    @property
    def distinct(self) -> int:
        """Values beside zero."""
        return int(np.count_nonzero(np.unique(self.values)))

    def most_of(self, run: int) -> int:
        """Of ``run`` neighbouring inputs, how many are not zero at most."""
        last = np.moveaxis(self.values, 1, -1)
        return int((last.reshape(-1, run) != 0).sum(1).max())


def exported(model: torch.nn.Module, path: Path) -> list[Weight]:
    """Export ``model`` as a build does; the weights of its convolutions and products."""
    example = {"x": Task().x[:2].clone()}
    result, _ = export_with_report(TorchModel(module=model, example_inputs=example), path)
    graph = onnx.load(result.path).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    stored = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        flags = {a.name: a.i for a in node.attribute}
        turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not flags.get("transB"))
        weight = _weight(node.input[1], arrays, stored)
        found.append(Weight(weight.values.T, weight.integers) if turned else weight)
    return found


def _weight(name: str, arrays: dict[str, NDArray[np.float32]], stored: dict[str, onnx.NodeProto]) -> Weight:
    if name in arrays:
        return Weight(arrays[name], None)
    node = stored[name]
    integers, scale = (arrays[i] for i in node.input[:2])
    integers = integers.astype(np.int8)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    shape = [-1 if i == axis else 1 for i in range(integers.ndim)] if scale.ndim else []
    return Weight(integers.astype(np.float32) * scale.reshape(shape), integers)
