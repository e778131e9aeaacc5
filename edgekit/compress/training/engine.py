"""How a training run uses the machine: device, precision, several processes, what is logged.

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
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.core.progress import Progress, Silent
from edgekit.errors import ConfigError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS: Mapping[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
DEVICES = ("auto", "cpu", "cuda", "mps")
LOGGERS = ("tensorboard", "mlflow", "wandb")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What the machine's user chooses: where training runs, and what is shown and written meanwhile.

    ``device`` is one of ``DEVICES``; ``loggers`` some of ``LOGGERS``, writing to ``logs``;
    ``checkpoint_s`` is the time between checkpoints in seconds.
    """

    device: str = "cpu"
    loggers: tuple[str, ...] = ()
    logs: Path = Path("logs")
    checkpoint_s: float = 30.0
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"unknown device {self.device!r}", hint=f"use {', '.join(DEVICES)}")
        for name in self.loggers:
            if name not in LOGGERS:
                raise ConfigError(f"unknown logger {name!r}", hint=f"use {', '.join(LOGGERS)}")


_loop: ContextVar[Loop] = ContextVar("loop", default=Loop())  # noqa: B039 - frozen


@contextlib.contextmanager
def looping(loop: Loop) -> Iterator[None]:
    """Train with ``loop`` inside the block. Ambient, because no step has a say in it."""
    token = _loop.set(loop)
    try:
        yield
    finally:
        _loop.reset(token)


def current() -> Loop:
    """The loop settings in force."""
    return _loop.get()


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

    def __init__(self, fabric: Any | None) -> None:
        import torch

        self._fabric = fabric
        self.world: int = fabric.world_size if fabric is not None else 1
        self.rank: int = fabric.global_rank if fabric is not None else 0
        self.device: torch.device = fabric.device if fabric is not None else torch.device("cpu")

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer with the precision's loss scaling around its step."""
        return optimizer if self._fabric is None else self._fabric.setup_optimizers(optimizer)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around every forward pass."""
        return contextlib.nullcontext() if self._fabric is None else self._fabric.autocast()

    def share(self, batch: Any) -> tuple[Any, float]:
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

    def average(self, model: torch.nn.Module) -> None:
        """Sum up the processes' gradients (weighted already), and average the statistics in buffers."""
        if self.world > 1:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            buffers = [b for b in model.buffers() if b.is_floating_point()]
            self._reduce(grads, 1.0)
            self._reduce(buffers, 1.0 / self.world)

    def clip(self, model: torch.nn.Module, optimizer: Any, norm: float) -> None:
        """Limit the gradient's norm."""
        import torch

        if self._fabric is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
        else:
            self._fabric.clip_gradients(model, optimizer, max_norm=norm, error_if_nonfinite=False)

    def mean(self, value: float) -> float:
        """The mean of one number over the processes: all of them go on with the same."""
        import torch

        if self.world == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        self._reduce([told], 1.0 / self.world)
        return float(told)

    def align(self, model: torch.nn.Module) -> None:
        """Every process starts with the first one's weights."""
        import torch

        if self.world > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def random_state(self) -> torch.Tensor:
        """The random generators' states, uint8 ``[processes, bytes]``."""
        import torch

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
        import torch

        mine, size = states[self.rank % len(states)], len(torch.get_rng_state())
        torch.set_rng_state(mine[:size].clone())
        if self.device.type == "cuda" and len(mine) > size:
            torch.cuda.set_rng_state(mine[size:].clone(), self.device)

    def scaling(self) -> dict[str, Any]:
        """The state of the loss scaling (fp16); empty where there is none."""
        state: dict[str, Any] = {} if self._fabric is None else self._fabric._precision.state_dict()
        return state

    def set_scaling(self, state: Mapping[str, Any]) -> None:
        """Put :meth:`scaling` back."""
        if self._fabric is not None and state:
            self._fabric._precision.load_state_dict(dict(state))

    def _reduce(self, tensors: list[torch.Tensor], scale: float) -> None:
        import torch

        if not tensors:
            return
        flat = torch.cat([t.detach().flatten().double() for t in tensors]).to(self.device)
        torch.distributed.all_reduce(flat)
        at = 0
        for tensor in tensors:
            piece = flat[at : at + tensor.numel()].view_as(tensor) * scale
            tensor.detach().copy_(piece)
            at += tensor.numel()


def _cut(batch: Any, rank: int, world: int) -> tuple[Any, float]:
    import torch
    from torch.utils import _pytree as tree

    leaves, form = tree.tree_flatten(batch)
    rows = next((x.shape[0] for x in leaves if isinstance(x, torch.Tensor) and x.dim()), 0)
    if world == 1 or rows < world:
        return batch, 1.0 / world
    begin, end = rank * rows // world, (rank + 1) * rows // world
    mine = [
        x[begin:end] if isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == rows else x for x in leaves
    ]
    return tree.tree_unflatten(mine, form), (end - begin) / rows


def _best() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def _fabric(device: str, precision: str) -> Any:
    import torch

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
    made = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=PRECISIONS[precision],
    )
    made.launch()
    torch.backends.cudnn.deterministic = True  # same seed, same weights, where the GPU's kernels allow it
    return made
