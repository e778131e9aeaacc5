"""How a training run uses the machine: device, precision, several processes.

None of it is part of a recipe but the precision, which changes what is learnt. One process in fp32 on the
CPU needs nothing but torch; everything else goes through Lightning Fabric (the extra ``compress``).

Several processes (``torchrun``) share each batch: every process takes its part, gradients are averaged by
the parts' sizes, so that N processes train as one does. Models are not wrapped: gradients are summed in one
flat tensor after the backward pass, so hooks, parametrizations and calls of submodules keep working.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn
from torch.utils import _pytree as tree

from edgekit.compress.training.settings import current
from edgekit.compress.training.task import AnyBatch
from edgekit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS: Mapping[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def engine(precision: str) -> Engine:
    """The engine for the loop in force and the recipe's ``precision``."""
    device, several = current().device, int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device == "auto":
        device = _best()
    if device == "cpu" and precision == "fp32" and not several:
        return Engine(None)
    return Engine(_fabric(device, precision))


class Engine:
    """One training run's hold of the machine."""

    def __init__(self, fabric: Fabric | None) -> None:
        self._fabric = fabric
        self.world: int = fabric.world_size if fabric is not None else 1
        self.rank: int = fabric.global_rank if fabric is not None else 0
        self.device: torch.device = fabric.device if fabric is not None else torch.device("cpu")

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer with the precision's loss scaling around its step."""
        if self._fabric is None:
            return optimizer
        return cast("torch.optim.Optimizer", self._fabric.setup_optimizers(optimizer))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around every forward pass."""
        return contextlib.nullcontext() if self._fabric is None else self._fabric.autocast()

    def share(self, batch: AnyBatch) -> tuple[AnyBatch, float]:
        """This process's part of a batch, on its device, and the part's weight (1 if it is all of it).

        Tensors whose first axis is the batch's are cut; the rest is given to every process. A batch that
        cannot be cut is used whole by all.
        """
        if self._fabric is None:
            return batch, 1.0
        batch, weight = _cut(batch, self.rank, self.world)
        return self._fabric.to_device(batch), weight

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of this process's part."""
        if self._fabric is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._fabric.backward(loss)

    def average(self, model: nn.Module) -> None:
        """Sum up the processes' gradients (weighted already), and average the statistics in buffers."""
        if self.world > 1:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            buffers = [b for b in model.buffers() if b.is_floating_point()]
            self._reduce(grads, 1.0)
            self._reduce(buffers, 1.0 / self.world)

    def clip(self, model: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Limit the gradient's norm."""
        if self._fabric is None:
            nn.utils.clip_grad_norm_(model.parameters(), norm)
        else:
            self._fabric.clip_gradients(model, optimizer, max_norm=norm, error_if_nonfinite=False)

    def mean(self, value: float) -> float:
        """The mean of one number over the processes: all of them go on with the same."""
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        self._reduce([total], 1.0 / self.world)
        return float(total)

    def align(self, model: nn.Module) -> None:
        """Every process starts with the first one's weights."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def random_state(self) -> torch.Tensor:
        """The random generators' states, uint8 ``[processes, bytes]``."""
        parts = [torch.get_rng_state()]
        if self.device.type == "cuda":
            parts.append(torch.cuda.get_rng_state(self.device))
        mine = torch.cat(parts)
        if self.world == 1:
            return mine[None]
        everyone = [torch.empty_like(mine) for _ in range(self.world)]
        gathered = [t.to(self.device) for t in everyone]
        torch.distributed.all_gather(gathered, mine.to(self.device))
        return torch.stack([t.cpu() for t in gathered])

    def set_random_state(self, states: torch.Tensor) -> None:
        """Put :meth:`random_state` back."""
        mine, size = states[self.rank % len(states)], len(torch.get_rng_state())
        torch.set_rng_state(mine[:size].clone())
        if self.device.type == "cuda" and len(mine) > size:
            torch.cuda.set_rng_state(mine[size:].clone(), self.device)

    def scaling(self) -> dict[str, object]:
        """The state of the loss scaling (fp16); empty where there is none."""
        return {} if self._fabric is None else self._fabric._precision.state_dict()

    def set_scaling(self, state: Mapping[str, object]) -> None:
        """Put :meth:`scaling` back."""
        if self._fabric is not None and state:
            self._fabric._precision.load_state_dict(dict(state))

    def _reduce(self, tensors: list[torch.Tensor], scale: float) -> None:
        if not tensors:
            return
        # One tensor for all: a call for each gradient costs more in latency than the sums take. In float64, so that N
        # processes round as one does.
        flat = torch.cat([t.detach().flatten().double() for t in tensors]).to(self.device)
        torch.distributed.all_reduce(flat)
        at = 0
        for tensor in tensors:
            piece = flat[at : at + tensor.numel()].view_as(tensor) * scale
            tensor.detach().copy_(piece)
            at += tensor.numel()


def _cut(batch: AnyBatch, rank: int, world: int) -> tuple[AnyBatch, float]:
    leaves, form = tree.tree_flatten(batch)
    rows = next((x.shape[0] for x in leaves if isinstance(x, torch.Tensor) and x.dim()), 0)
    if world == 1 or rows < world:
        return batch, 1.0 / world
    begin, end = rank * rows // world, (rank + 1) * rows // world
    own = [
        x[begin:end] if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == rows else x for x in leaves
    ]
    return tree.tree_unflatten(own, form), (end - begin) / rows


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def _fabric(device: str, precision: str) -> Fabric:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError(
            "lightning-fabric (GPU, mixed precision, several processes)", "compress"
        ) from error
    if (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    ):
        raise UsageError(f"there is no {device} device here", hint="use --device cpu, or auto")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=_PRECISIONS[precision],
    )
    fabric.launch()
    torch.backends.cudnn.deterministic = True  # same seed, same weights, where the GPU's kernels allow it
    return fabric
