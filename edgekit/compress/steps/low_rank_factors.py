"""How one layer is cut into thin ones: what was seen of its inputs, its factors at any rank, their modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context

_MEMORY = 512 << 20
_PATCH = 2304
_DAMPING = 1e-3
_CP_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of a layer's inputs: second moments ``[D, D]`` and mean ``[D]``; of an embedding's: how often each row."""

    moments: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    counts: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A layer at every rank: ``energies`` are those of its components, falling, relative to their sum; ``each`` and
    ``fixed`` give the parameters at rank r as ``fixed + each · r (+ square · r²)``; ``build`` makes the modules."""

    parameters: int
    energies: torch.Tensor
    each: int
    fixed: int
    multiple: int
    build: Callable[[int], torch.nn.Module]
    square: float = 0.0

    def size(self, rank: int) -> int:
        """Parameters at ``rank``; 0 stands for the layer as it was."""
        return self.fixed + round(self.each * rank + self.square * rank * rank) if rank else self.parameters

    def ranks(self) -> Sequence[int]:
        """Those that save parameters."""
        step = min(self.multiple, len(self.energies))
        return [r for r in range(step, len(self.energies) + 1, step) if self.size(r) < self.parameters]

    def next(self, rank: int) -> int:
        """The next higher rank; 0 (the layer as it was) after the last, and after 0."""
        return next((r for r in self.ranks() if r > rank), 0) if rank else 0

    def lost(self, rank: int) -> float:
        """The share of the energy that ``rank`` gives up."""
        return float(self.energies[rank:].sum()) if rank else 0.0

    def rank_for(self, energy: float) -> int:
        """The least rank that keeps ``energy``; 0 if none that saves parameters does."""
        return next((r for r in self.ranks() if 1 - self.lost(r) >= energy), 0)

    def cheapest(self, price: float) -> int:
        """The rank of least lost energy plus ``price`` a parameter."""
        return min((0, *self.ranks()), key=lambda r: self.lost(r) + price * self.size(r))


def cuttable(model: torch.nn.Module, *, embeddings: bool, convolutions: bool) -> dict[str, torch.nn.Module]:
    """Layers that are called as modules and share their weights with nobody, by name."""
    import torch

    shared: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            shared[id(parameter)] = shared.get(id(parameter), 0) + 1
    inside = {
        f"{name}.{child}"
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.MultiheadAttention | torch.nn.TransformerEncoderLayer)
        for child, _ in m.named_modules()
    }  # their fused paths read the weights of their children, and never call them
    out = {}
    for name, module in model.named_modules():
        kinds: tuple[Any, ...] = (torch.nn.Linear,)
        kinds += (torch.nn.Embedding,) if embeddings else ()
        plain = isinstance(module, torch.nn.Conv2d | torch.nn.Conv1d) and convolutions and _plain(module)
        if not name or name in inside or not (isinstance(module, kinds) or plain):
            continue
        weight = module.get_parameter("weight")
        if shared.get(id(weight)) == 1 and min(weight.shape[:2]) > 1:
            out[name] = module
    return out


def _plain(module: Any) -> bool:
    return bool(module.groups == 1 and module.padding_mode == "zeros")


# --- what is seen -------------------------------------------------------------------------------------------------


def seen(
    model: torch.nn.Module,
    targets: Mapping[str, torch.nn.Module],
    context: Context,
    batches: int,
    *,
    step: str,
) -> dict[str, Seen]:
    """Moments and counts of every target's inputs over the task's first batches; memory is bounded."""
    out: dict[str, Seen] = {}
    for group in _groups(targets):
        watchers = {name: _Watcher(targets[name]) for name in group}
        try:
            context.observe(model, batches, step=step)
        finally:
            for watcher in watchers.values():
                watcher.handle.remove()
        out |= {name: watcher.seen() for name, watcher in watchers.items()}
    return out


def _groups(targets: Mapping[str, torch.nn.Module]) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name, module in targets.items():
        size = 8 * _width(module) ** 2
        if group and used + size > _MEMORY:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    yield group


def _width(module: Any) -> int:
    """Side of the moments' matrix: with whole patches where that is not too large, else channels only."""
    import torch

    if isinstance(module, torch.nn.Embedding):
        return 1
    weight = module.weight
    patch = weight[0].numel()
    return int(patch if patch <= _PATCH else weight.shape[1])


class _Watcher:
    def __init__(self, module: Any) -> None:
        import torch

        self.module, self.width = module, _width(module)
        self.embedding = isinstance(module, torch.nn.Embedding)
        rows = module.num_embeddings if self.embedding else self.width
        self.sum = torch.zeros(rows, dtype=torch.float64)
        self.products = torch.zeros(0 if self.embedding else rows, rows, dtype=torch.float64)
        self.count = 0
        self.handle = module.register_forward_pre_hook(self.look)

    def look(self, module: Any, args: tuple[Any, ...]) -> None:
        import torch

        x = args[0].detach()
        if self.embedding:
            self.sum += torch.bincount(x.flatten().cpu(), minlength=len(self.sum)).double()
            return
        if x.ndim > 2 and module.weight.ndim > 2:
            x = self._patches(x)
        x = x.reshape(-1, self.width).float()
        self.sum += x.sum(0).double().cpu()
        self.products += (x.T @ x).double().cpu()
        self.count += len(x)

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, channels × kernel]``, or ``[rows, channels]``."""
        from torch.nn import functional

        m = self.module
        if self.width == m.weight.shape[1]:
            return x.movedim(1, -1)
        if x.ndim == 3:
            x = x.unsqueeze(2)
        ones: dict[str, tuple[int, ...]] = {}
        for key, neutral in (("kernel_size", 1), ("dilation", 1), ("stride", 1)):
            ones[key] = (neutral,) * (2 - len(m.kernel_size)) + tuple(getattr(m, key))
        left = tuple(_padding(m, axis) for axis in range(len(m.kernel_size)))
        padding = (0,) * (2 - len(left)) + left
        size, dilation, stride = ones["kernel_size"], ones["dilation"], ones["stride"]
        return functional.unfold(x, size, dilation, padding, stride).transpose(1, 2)

    def seen(self) -> Seen:
        if self.embedding:
            return Seen(counts=self.sum)
        count = max(1, self.count)
        return Seen(moments=self.products / count, mean=self.sum / count)


# --- factors --------------------------------------------------------------------------------------------------------


def factor(module: torch.nn.Module, found: Seen, *, method: str, multiple: int) -> Cut:
    """The layer's cut by ``method`` (``svd``, ``tucker``, ``cp``)."""
    import torch

    if isinstance(module, torch.nn.Embedding):
        return _embedding(module, found, multiple)
    if method == "svd":
        return _matrix(module, found, multiple)
    return _tucker(module, found, multiple) if method == "tucker" else _cp(module, multiple)


def _matrix(module: Any, found: Seen, multiple: int) -> Cut:
    """``W ≈ B·A`` that loses the least of ``E‖(W − B·A)·x‖²``."""
    import torch

    weight = module.weight.detach().double().cpu()
    flat = weight.flatten(1)
    root = _root(found, module, flat.shape[1])
    u, s, v = torch.linalg.svd(flat @ root, full_matrices=False)
    back = torch.linalg.solve_triangular(root, v, upper=False, left=False)

    def build(rank: int) -> torch.nn.Module:
        first, second = back[:rank] * s[:rank, None].sqrt(), u[:, :rank] * s[:rank].sqrt()
        bias = None if module.bias is None else module.bias + _shift(flat - second @ first, found, weight)
        return _fill(hollow(module, rank, "svd"), [first, second], bias)

    return Cut(
        parameters=_count(module), energies=_shares(s), each=sum(flat.shape),
        fixed=0 if module.bias is None else flat.shape[0], multiple=multiple, build=build,
    )  # fmt: skip


def _embedding(module: Any, found: Seen, multiple: int) -> Cut:
    """Rows weighted by the square root of their frequency; rows never seen count as half an occurrence."""
    import torch

    table = module.weight.detach().double().cpu()
    weight = torch.ones(len(table), 1, dtype=torch.float64)
    if found.counts is not None:
        weight = (found.counts + 0.5).sqrt()[:, None]
    gram = (weight * table).T @ (weight * table)  # D × D: the table has many more rows than columns
    values, vectors = torch.linalg.eigh(gram)
    basis = vectors.flip(1)

    def build(rank: int) -> torch.nn.Module:
        return _fill(hollow(module, rank, "svd"), [table @ basis[:, :rank], basis[:, :rank]], None)

    energies = values.flip(0).clamp_min(0)
    return Cut(
        parameters=table.numel(), energies=energies / energies.sum(), each=sum(table.shape), fixed=0,
        multiple=multiple, build=build,
    )  # fmt: skip


def _tucker(module: Any, found: Seen, multiple: int) -> Cut:
    """1×1, core, 1×1 with ranks in proportion to the channels; input channels whitened."""
    import torch

    weight = module.weight.detach().double().cpu()
    outputs, inputs = weight.shape[:2]
    root = _channel_root(found, inputs)
    white = torch.einsum("oi...,ij->oj...", weight, root)
    u, s, _ = torch.linalg.svd(white.flatten(1), full_matrices=False)
    v, t, _ = torch.linalg.svd(white.movedim(1, 0).flatten(1), full_matrices=False)
    u, v = u[:, : min(outputs, len(s))], v[:, : min(inputs, len(t))]
    kernel = weight[0, 0].numel()
    most = min(u.shape[1], v.shape[1])

    def build(rank: int) -> torch.nn.Module:
        r_out, r_in = _tucker_ranks(module, rank)
        left, right = u[:, :r_out], v[:, :r_in]
        core = torch.einsum("oi...,op,iq->pq...", white, left, right)
        squeeze = torch.linalg.solve_triangular(root, right.T, upper=False, left=False)
        return _fill(hollow(module, rank, "tucker"), [squeeze, core, left], module.bias)

    wide, narrow = max(outputs, inputs), min(outputs, inputs)
    ratio = wide / narrow
    energies = (_shares(s)[:most] + _shares(t)[:most]) / 2
    return Cut(
        parameters=_count(module), energies=energies / energies.sum(),
        each=round(narrow + wide * ratio), square=kernel * ratio,
        fixed=0 if module.bias is None else outputs, multiple=multiple, build=build,
    )  # fmt: skip


def _cp(module: Any, multiple: int) -> Cut:
    """1×1, one depthwise convolution an axis, 1×1. Energies are taken from the unfolded kernel."""
    import torch

    weight = module.weight.detach().double().cpu()
    s = torch.linalg.svdvals(weight.flatten(1))

    def build(rank: int) -> torch.nn.Module:
        outputs, inputs, *axes = _parafac(weight, rank)
        factors = [inputs.T, *(axis.T for axis in axes), outputs]
        return _fill(hollow(module, rank, "cp"), factors, module.bias)

    return Cut(
        parameters=_count(module), energies=_shares(s), each=sum(weight.shape),
        fixed=0 if module.bias is None else weight.shape[0], multiple=multiple, build=build,
    )  # fmt: skip


def _parafac(weight: torch.Tensor, rank: int) -> list[torch.Tensor]:
    import torch

    try:
        import tensorly
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise MissingExtraError("tensorly", extra="compress") from error
    scales, factors = parafac(
        tensorly.tensor(weight.numpy()), rank, n_iter_max=_CP_STEPS, init="svd", random_state=0,
        normalize_factors=False, tol=1e-9,
    )  # fmt: skip
    found = [torch.from_numpy(f.copy()) for f in factors]
    found[0] = found[0] * torch.from_numpy(scales.copy())
    return found


def _fill(
    made: torch.nn.Sequential, weights: Sequence[torch.Tensor], bias: torch.Tensor | None
) -> torch.nn.Sequential:
    """Give every module of ``made`` its weight, the last one the bias."""
    import torch

    with torch.no_grad():
        for module, weight in zip(made, weights, strict=True):
            own = module.get_parameter("weight")
            own.copy_(weight.reshape(own.shape))
        if bias is not None:
            made[-1].get_parameter("bias").copy_(bias)
    return made


def hollow(module: Any, rank: int, method: str) -> torch.nn.Sequential:
    """The modules that take a layer's place at ``rank``, with weights still to be set."""
    from torch import nn

    if isinstance(module, nn.Embedding):
        first: nn.Module = nn.Embedding(module.num_embeddings, rank, padding_idx=module.padding_idx)
        made = nn.Sequential(first, nn.Linear(rank, module.embedding_dim, bias=False))
    elif isinstance(module, nn.Linear):
        made = nn.Sequential(
            nn.Linear(module.in_features, rank, bias=False),
            nn.Linear(rank, module.out_features, bias=module.bias is not None),
        )
    else:
        made = _convolutions(module, rank, method)
    made.to(module.weight.device, module.weight.dtype).train(module.training)
    return made


def _convolutions(m: Any, rank: int, method: str) -> torch.nn.Sequential:
    from torch import nn

    conv: Any = nn.Conv1d if isinstance(m, nn.Conv1d) else nn.Conv2d
    where = {"stride": m.stride, "padding": m.padding, "dilation": m.dilation}
    bias = m.bias is not None
    if method == "svd":
        return nn.Sequential(
            conv(m.in_channels, rank, m.kernel_size, bias=False, **where),
            conv(rank, m.out_channels, 1, bias=bias),
        )
    if method == "tucker":
        outputs, inputs = _tucker_ranks(m, rank)
        return nn.Sequential(
            conv(m.in_channels, inputs, 1, bias=False),
            conv(inputs, outputs, m.kernel_size, bias=False, **where),
            conv(outputs, m.out_channels, 1, bias=bias),
        )
    count = len(m.kernel_size)
    axes = []
    for axis in range(count):
        own: dict[str, Any] = {}
        for key, neutral in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(m, key)
            spread = (
                value
                if isinstance(value, str)
                else tuple(value[i] if i == axis else neutral for i in range(count))
            )
            own[key] = spread
        axes.append(conv(rank, rank, groups=rank, bias=False, **own))
    return nn.Sequential(
        conv(m.in_channels, rank, 1, bias=False), *axes, conv(rank, m.out_channels, 1, bias=bias)
    )


def _padding(m: Any, axis: int) -> int:
    """Zeros on each side of ``axis`` (``same`` with an even kernel has one more behind; the moments do without)."""
    if isinstance(m.padding, str):
        return int(m.dilation[axis] * (m.kernel_size[axis] - 1) // 2) if m.padding == "same" else 0
    return int(m.padding[axis])


def _tucker_ranks(module: Any, rank: int) -> tuple[int, int]:
    """(outputs, inputs): ``rank`` is that of the narrower side, the other in proportion."""
    outputs, inputs = module.out_channels, module.in_channels
    narrow = min(outputs, inputs)
    return max(1, round(rank * outputs / narrow)), max(1, round(rank * inputs / narrow))


def _root(found: Seen, module: Any, width: int) -> torch.Tensor:
    """A lower triangular root of the inputs' covariance (about their mean where a bias can take that up)."""
    import torch

    if found.moments is None:
        return torch.eye(width, dtype=torch.float64)
    if len(found.moments) != width:
        kernel = width // len(found.moments)
        channels = _channel_root(found, len(found.moments))
        return torch.kron(channels, torch.eye(kernel, dtype=torch.float64))
    moments = found.moments
    if module.bias is not None and found.mean is not None:
        moments = moments - torch.outer(found.mean, found.mean)
    return _cholesky(moments)


def _channel_root(found: Seen, channels: int) -> torch.Tensor:
    import torch

    if found.moments is None:
        return torch.eye(channels, dtype=torch.float64)
    moments = found.moments
    if len(moments) != channels:  # whole patches: the mean over the places of the kernel
        kernel = len(moments) // channels
        moments = moments.reshape(channels, kernel, channels, kernel).diagonal(dim1=1, dim2=3).mean(-1)
    return _cholesky(moments)


def _cholesky(moments: torch.Tensor) -> torch.Tensor:
    import torch

    damping = _DAMPING * float(moments.diagonal().mean()) + 1e-12
    eye = torch.eye(len(moments), dtype=moments.dtype)
    for _ in range(8):
        root, failed = torch.linalg.cholesky_ex((moments + moments.T) / 2 + damping * eye)
        if not int(failed):
            return root  # type: ignore[no-any-return]
        damping *= 10
    return (moments.diagonal().clamp_min(0) + damping).sqrt().diag()


def _shift(change: torch.Tensor, found: Seen, weight: torch.Tensor) -> torch.Tensor:
    """What the outputs' mean loses when the weights change by ``change``."""
    if found.mean is None:
        return change.new_zeros(len(change))
    if len(found.mean) == change.shape[1]:
        return change @ found.mean
    return change.reshape(len(weight), weight.shape[1], -1).sum(-1) @ found.mean


def _shares(values: torch.Tensor) -> torch.Tensor:
    energies = values.square()
    return energies / energies.sum().clamp_min(1e-300)


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
