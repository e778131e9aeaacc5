"""Multiply-accumulates of modules against numbers worked out by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
import torch

from edgekit.compress.counting import count


class Attention(torch.nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, q, k, v):
        mask = torch.zeros(q.shape[-2], k.shape[-2]) if self.masked else None
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class First(torch.nn.Module):
    """The first of a module's outputs."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        found = self.module(*inputs)
        return found[0] if isinstance(found, tuple) else found


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


HEADS = 2 * 5 * (3 * 8 * 8) + 2 * 2 * 5 * 5 * 8 + 2 * 5 * 8 * 8
CASES = {
    "lstm": (torch.nn.LSTM(4, 3), [rand(5, 2, 4)], 5 * 2 * 12 * (4 + 3)),
    "two layers both ways": (
        torch.nn.LSTM(4, 3, num_layers=2, bidirectional=True),
        [rand(5, 2, 4)],
        5 * 2 * 2 * (12 * (4 + 3) + 12 * (6 + 3)),
    ),
    "lstm with a projection": (
        torch.nn.LSTM(4, 6, proj_size=3),
        [rand(5, 2, 4)],
        5 * 2 * (24 * (4 + 3) + 6 * 3),
    ),
    "gru": (torch.nn.GRU(4, 3, batch_first=True), [rand(2, 5, 4)], 5 * 2 * 9 * (4 + 3)),
    "rnn": (torch.nn.RNN(4, 3), [rand(5, 2, 4)], 5 * 2 * 3 * (4 + 3)),
    "cell": (torch.nn.LSTMCell(4, 3), [rand(2, 4)], 2 * 12 * (4 + 3)),
    "attention": (Attention(False), [rand(2, 3, 5, 4), rand(2, 3, 7, 4), rand(2, 3, 7, 6)], 6 * 5 * 7 * 10),
    "masked": (Attention(True), [rand(2, 3, 5, 4), rand(2, 3, 7, 4), rand(2, 3, 7, 4)], 6 * 5 * 7 * 8),
    "heads": (torch.nn.MultiheadAttention(8, 2, batch_first=True), [rand(2, 5, 8)] * 3, HEADS),
    "encoder layer": (
        torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        [rand(2, 5, 8)],
        HEADS + 2 * 5 * 2 * 8 * 16,
    ),
    "bilinear": (torch.nn.Bilinear(3, 4, 5), [rand(2, 3), rand(2, 4)], 2 * 3 * 4 * 5),
    "convolution": (torch.nn.Conv2d(4, 6, 3, groups=2), [rand(2, 4, 5, 5)], 2 * 6 * 9 * 2 * 9),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_one_module(name: str, training: bool) -> None:
    """The fused kernels of evaluation and the single products of training are the same arithmetic."""
    module, inputs, expected = CASES[name]
    named = {f"x{i}": x for i, x in enumerate(inputs)}
    assert count(First(module.train(training)), named) == expected


def test_nothing_without_inputs() -> None:
    assert count(torch.nn.Linear(2, 2), {}) == 0
