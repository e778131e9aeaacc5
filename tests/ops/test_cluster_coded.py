"""Weight sharing by the loss and the coded size: the curvature, the rate that was asked for, and what it buys."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from edgekit.compress.curvature import curvature
from edgekit.compress.hooks import prunable
from edgekit.compress.run import run
from edgekit.compress.step import Context
from edgekit.compress.steps.cluster import Cluster
from edgekit.compress.steps.cluster_tables import kmeans
from edgekit.errors import ConfigError, UsageError


@dataclass(frozen=True, kw_only=True)
class Own:
    """The net's own answers on correlated images."""

    images: torch.Tensor
    answers: torch.Tensor
    fingerprint: str = "own"
    metric_name: str = "agreement"

    def steps(self) -> int:
        return len(self.images) // 16

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        del epoch, seed
        yield from zip(self.images.split(16), self.answers.split(16), strict=True)

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def metric(self, model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.images).argmax(1) == self.answers).double().mean())


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(4, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding="same", groups=4, dilation=2, bias=False),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, (3, 2), stride=2, padding=1, padding_mode="circular"),
        torch.nn.ConvTranspose2d(16, 8, 2),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 5 * 6, 10),
    ).eval()


def task(model: torch.nn.Module, count: int = 96) -> Own:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 8, 8, generator=random).expand(-1, 4, -1, -1)
    images = images + 0.3 * torch.randn(count, 4, 8, 8, generator=random)
    with torch.no_grad():
        return Own(images=images, answers=model(images).argmax(1))


def test_the_moments_give_the_change_of_the_outputs() -> None:
    """``e·M·e`` is the squared change of a layer's outputs, their mean taken up by the bias; up to the damping."""
    model = net()
    own = task(model)
    layers = prunable(model)
    seen = curvature(model, layers, Context(task=own), 6, step="test")
    inputs: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args[0]))
    with torch.no_grad():
        model(own.images)
    for name in ("0", "2", "4", "7"):
        error = torch.randn_like(layers[name].weight, dtype=torch.float32)
        changed = copy.deepcopy(layers[name])
        with torch.no_grad():
            changed.weight.copy_(error)
            if changed.bias is not None:
                changed.bias.zero_()
            out = changed(inputs[name]).double()
        rows = error.flatten(1).double()
        axes = [a for a in range(out.ndim) if a != 1]
        centred = out if changed.bias is None else out - out.mean(axes, keepdim=True)
        wanted = centred.square().sum(axes)
        got = torch.cat(
            [
                ((rows[b.rows, b.columns] @ b.moments) * rows[b.rows, b.columns]).sum(1)
                for b in seen[name].blocks
            ]
        )
        ratio = got / wanted
        assert ratio.max() / ratio.min() < 1.15, name
        means = seen[name].blocks[0].mean
        assert bool(means.any()) == (changed.bias is not None)
    assert not seen["5"].blocks
    assert seen["5"].diagonal.min() > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def entropy(model: torch.nn.Module) -> float:
    """Bits of all weights."""
    out = 0.0
    for layer in prunable(model).values():
        counts = torch.unique(layer.weight, return_counts=True)[1].double()
        out -= float((counts * (counts / counts.sum()).log2()).sum())
    return out


def error(model: torch.nn.Module, other: torch.nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images) - other(images)).square().mean())


@pytest.mark.parametrize("bits", [2.5, 4.0])
def test_better_than_k_means_at_the_bits_that_were_asked_for(bits: float) -> None:
    whole = net()
    own = task(whole)
    coded, _ = run(copy.deepcopy(whole), (Cluster(bits=bits, values=255, batches=6),), Context(task=own))
    weights = sum(layer.weight.numel() for layer in prunable(whole).values())
    tables = sum(len(torch.unique(layer.weight)) for layer in prunable(coded).values())
    assert (entropy(coded) + 40 * tables) / weights == pytest.approx(bits, rel=0.15)
    fresh = task(whole, 300).images[96:]
    peers = []
    for values in (3, 5, 9, 15, 31):
        for bias in (0.0, 0.02, 0.1, 0.3):
            peer = copy.deepcopy(whole)
            for layer in prunable(peer).values():
                table, index = kmeans(layer.weight.detach(), values, bias)
                layer.weight.data = table[index]
            if entropy(peer) <= entropy(coded):
                peers.append(error(peer, whole, fresh))
    assert error(coded, whole, fresh) < 0.8 * min(peers)


def test_zeros_stay_and_the_same_comes_again() -> None:
    whole = net()
    with torch.no_grad():
        for layer in prunable(whole).values():
            layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0
    own = task(whole)
    step = Cluster(bits=1.5, values=15, batches=3, bias_bits=6)
    first, _ = run(copy.deepcopy(whole), (step,), Context(task=own))
    again, _ = run(copy.deepcopy(whole), (step,), Context(task=own))
    for name, layer in prunable(first).items():
        assert torch.equal(layer.weight, again.get_submodule(name).weight)
        assert not layer.weight[prunable(whole)[name].weight == 0].any()
        assert len(torch.unique(layer.weight)) <= 16
    assert torch.equal(first[0].bias, again[0].bias)
    assert not torch.equal(first[0].bias, whole[0].bias)


def test_a_layer_of_zeros_and_one_that_nothing_moves() -> None:
    whole = net()
    with torch.no_grad():
        whole[4].weight.zero_()
    coded, _ = run(whole, (Cluster(bits=3.0, batches=2),), Context(task=task(whole)))
    assert all(torch.isfinite(p).all() for p in coded.parameters())
    assert not coded[4].weight.any()


def test_what_it_needs() -> None:
    with pytest.raises(UsageError, match="nothing to train on"):
        Cluster(bits=2.0).apply(net(), Context())
    with pytest.raises(ConfigError, match=r"bias 0\.1") as refused:
        Cluster(bits=2.0, bias=0.1)
    assert "not both" in refused.value.hint
