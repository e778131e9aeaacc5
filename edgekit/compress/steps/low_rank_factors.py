"""How one layer is cut into thin ones: its factors at any rank, and their modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgekit.compress.hooks import Weighted
from edgekit.compress.steps.low_rank_moments import Factorable, InputMoments
from edgekit.errors import MissingExtraError

_DAMPING = 1e-3
_CP_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A layer at every rank: ``energies`` are those of its components, falling, relative to their sum; ``each`` and
    ``fixed`` give the parameters at rank r as ``fixed + each · r (+ square · r²)``; ``build`` makes the modules."""

    parameters: int
    energies: torch.Tensor
    each: int
    fixed: int
    multiple: int
    build: Callable[[int], nn.Module]
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

    def cheapest(self, multiplier: float) -> int:
        """The rank of least lost energy plus ``multiplier`` a parameter."""
        return min((0, *self.ranks()), key=lambda r: self.lost(r) + multiplier * self.size(r))


def factor(module: Factorable, inputs: InputMoments, *, method: str, multiple: int) -> Cut:
    """The layer's cut by ``method`` (``svd``, ``tucker``, ``cp``)."""
    if isinstance(module, nn.Embedding):
        return _embedding(module, inputs, multiple)
    if method == "svd":
        return _matrix(module, inputs, multiple)
    assert isinstance(module, nn.modules.conv._ConvNd)
    return _tucker(module, inputs, multiple) if method == "tucker" else _cp(module, multiple)


def _matrix(module: Weighted, inputs: InputMoments, multiple: int) -> Cut:
    """``W ≈ B·A`` that loses the least of ``E‖(W − B·A)·x‖²``."""
    weight = module.weight.detach().double().cpu()
    flat = weight.flatten(1)
    root = _root(inputs, module, flat.shape[1])
    u, s, v = torch.linalg.svd(flat @ root, full_matrices=False)
    back = torch.linalg.solve_triangular(root, v, upper=False, left=False)

    def build(rank: int) -> nn.Module:
        first, second = back[:rank] * s[:rank, None].sqrt(), u[:, :rank] * s[:rank].sqrt()
        bias = None if module.bias is None else module.bias + _shift(flat - second @ first, inputs, weight)
        return _fill(hollow(module, rank, "svd"), [first, second], bias)

    return Cut(
        parameters=_count(module), energies=_shares(s), each=sum(flat.shape),
        fixed=0 if module.bias is None else flat.shape[0], multiple=multiple, build=build,
    )  # fmt: skip


def _embedding(module: nn.Embedding, inputs: InputMoments, multiple: int) -> Cut:
    """Rows weighted by the square root of their frequency; rows never seen count as half an occurrence."""
    table = module.weight.detach().double().cpu()
    weight = torch.ones(len(table), 1, dtype=torch.float64)
    if inputs.counts is not None:
        weight = (inputs.counts + 0.5).sqrt()[:, None]
    gram = (weight * table).T @ (weight * table)  # D × D: the table has many more rows than columns
    values, vectors = torch.linalg.eigh(gram)
    basis = vectors.flip(1)

    def build(rank: int) -> nn.Module:
        return _fill(hollow(module, rank, "svd"), [table @ basis[:, :rank], basis[:, :rank]], None)

    energies = values.flip(0).clamp_min(0)
    return Cut(
        parameters=table.numel(), energies=energies / energies.sum(), each=sum(table.shape), fixed=0,
        multiple=multiple, build=build,
    )  # fmt: skip


def _tucker(module: nn.modules.conv._ConvNd, moments: InputMoments, multiple: int) -> Cut:
    """1×1, core, 1×1 with ranks in proportion to the channels; input channels whitened."""
    weight = module.weight.detach().double().cpu()
    outputs, inputs = weight.shape[:2]
    root = _channel_root(moments, inputs)
    white = torch.einsum("oi...,ij->oj...", weight, root)
    u, s, _ = torch.linalg.svd(white.flatten(1), full_matrices=False)
    v, t, _ = torch.linalg.svd(white.movedim(1, 0).flatten(1), full_matrices=False)
    u, v = u[:, : min(outputs, len(s))], v[:, : min(inputs, len(t))]
    kernel = weight[0, 0].numel()
    most = min(u.shape[1], v.shape[1])

    def build(rank: int) -> nn.Module:
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


def _cp(module: nn.modules.conv._ConvNd, multiple: int) -> Cut:
    """1×1, one depthwise convolution an axis, 1×1. Energies are taken from the unfolded kernel."""
    weight = module.weight.detach().double().cpu()
    s = torch.linalg.svdvals(weight.flatten(1))

    def build(rank: int) -> nn.Module:
        outputs, inputs, *axes = _parafac(weight, rank)
        factors = [inputs.T, *(axis.T for axis in axes), outputs]
        return _fill(hollow(module, rank, "cp"), factors, module.bias)

    return Cut(
        parameters=_count(module), energies=_shares(s), each=sum(weight.shape),
        fixed=0 if module.bias is None else weight.shape[0], multiple=multiple, build=build,
    )  # fmt: skip


def _parafac(weight: torch.Tensor, rank: int) -> list[torch.Tensor]:
    try:
        import tensorly
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise MissingExtraError("tensorly", extra="compress") from error
    scales, factors = parafac(
        tensorly.tensor(weight.numpy()), rank, n_iter_max=_CP_STEPS, init="svd", random_state=0,
        normalize_factors=False, tol=1e-9,
    )  # fmt: skip
    tensors = [torch.from_numpy(f.copy()) for f in factors]
    tensors[0] = tensors[0] * torch.from_numpy(scales.copy())
    return tensors


def _fill(thin: nn.Sequential, weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> nn.Sequential:
    """Give every module of ``thin`` its weight, the last one the bias."""
    with torch.no_grad():
        for module, weight in zip(thin, weights, strict=True):
            own = module.get_parameter("weight")
            own.copy_(weight.reshape(own.shape))
        if bias is not None:
            thin[-1].get_parameter("bias").copy_(bias)
    return thin


def hollow(module: nn.Module, rank: int, method: str) -> nn.Sequential:
    """The modules that take a layer's place at ``rank``, with weights still to be set."""
    if isinstance(module, nn.Embedding):
        first: nn.Module = nn.Embedding(module.num_embeddings, rank, padding_idx=module.padding_idx)
        thin = nn.Sequential(first, nn.Linear(rank, module.embedding_dim, bias=False))
    elif isinstance(module, nn.Linear):
        thin = nn.Sequential(
            nn.Linear(module.in_features, rank, bias=False),
            nn.Linear(rank, module.out_features, bias=module.bias is not None),
        )
    else:
        assert isinstance(module, nn.modules.conv._ConvNd)
        thin = _convolutions(module, rank, method)
    weight = module.get_parameter("weight")
    thin.to(weight.device, weight.dtype).train(module.training)
    return thin


def _convolutions(m: nn.modules.conv._ConvNd, rank: int, method: str) -> nn.Sequential:
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
    axes = [
        conv(
            rank, rank, _along(m.kernel_size, axis, 1), _along(m.stride, axis, 1), _along(m.padding, axis, 0),
            _along(m.dilation, axis, 1), groups=rank, bias=False,
        )
        for axis in range(len(m.kernel_size))
    ]  # fmt: skip
    return nn.Sequential(
        conv(m.in_channels, rank, 1, bias=False), *axes, conv(rank, m.out_channels, 1, bias=bias)
    )


def _along(values: str | tuple[int, ...], axis: int, neutral: int) -> str | tuple[int, ...]:
    """An option of a convolution along one axis, ``neutral`` along the others."""
    if isinstance(values, str):
        return values
    return tuple(v if i == axis else neutral for i, v in enumerate(values))


def _tucker_ranks(module: nn.modules.conv._ConvNd, rank: int) -> tuple[int, int]:
    """(outputs, inputs): ``rank`` is that of the narrower side, the other in proportion."""
    outputs, inputs = module.out_channels, module.in_channels
    narrow = min(outputs, inputs)
    return max(1, round(rank * outputs / narrow)), max(1, round(rank * inputs / narrow))


def _root(inputs: InputMoments, module: Weighted, width: int) -> torch.Tensor:
    """A lower triangular root of the inputs' covariance (about their mean where a bias can take that up)."""
    if inputs.moments is None:
        return torch.eye(width, dtype=torch.float64)
    if len(inputs.moments) != width:
        kernel = width // len(inputs.moments)
        channels = _channel_root(inputs, len(inputs.moments))
        return torch.kron(channels, torch.eye(kernel, dtype=torch.float64))
    moments = inputs.moments
    if module.bias is not None and inputs.mean is not None:
        moments = moments - torch.outer(inputs.mean, inputs.mean)
    return _cholesky(moments)


def _channel_root(inputs: InputMoments, channels: int) -> torch.Tensor:
    if inputs.moments is None:
        return torch.eye(channels, dtype=torch.float64)
    moments = inputs.moments
    if len(moments) != channels:  # whole patches: the mean over the places of the kernel
        kernel = len(moments) // channels
        moments = moments.reshape(channels, kernel, channels, kernel).diagonal(dim1=1, dim2=3).mean(-1)
    return _cholesky(moments)


def _cholesky(moments: torch.Tensor) -> torch.Tensor:
    damping = _DAMPING * float(moments.diagonal().mean()) + 1e-12
    eye = torch.eye(len(moments), dtype=moments.dtype)
    for _ in range(8):
        root, failed = torch.linalg.cholesky_ex((moments + moments.T) / 2 + damping * eye)
        if not int(failed):
            return root  # type: ignore[no-any-return]
        damping *= 10
    return (moments.diagonal().clamp_min(0) + damping).sqrt().diag()


def _shift(change: torch.Tensor, inputs: InputMoments, weight: torch.Tensor) -> torch.Tensor:
    """What the outputs' mean loses when the weights change by ``change``."""
    if inputs.mean is None:
        return change.new_zeros(len(change))
    if len(inputs.mean) == change.shape[1]:
        return change @ inputs.mean
    return change.reshape(len(weight), weight.shape[1], -1).sum(-1) @ inputs.mean


def _shares(values: torch.Tensor) -> torch.Tensor:
    energies = values.square()
    return energies / energies.sum().clamp_min(1e-300)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
