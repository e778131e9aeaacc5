"""Attention in its variants."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from torture.case import B, F, I, case


class Heads(nn.Module):
    """Projections around scaled_dot_product_attention in one of its ways."""

    def __init__(self, **how: object) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, **self.how)
        return self.out(y.transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Two heads of keys for four of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (-1, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return (
            functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            .transpose(1, 2)
            .flatten(2)
        )


class Multi(nn.Module):
    """nn.MultiheadAttention with a mask of padding, weights returned."""

    def __init__(self, **how: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **how)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.cat([torch.zeros_like(padding[:, :1]), padding[:, 1:]], 1)
        return self.attention(x, x, x, key_padding_mask=padding)


class Across(nn.Module):
    """Keys and values of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, kdim=10, vdim=6, batch_first=True)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.attention(x, keys, values, need_weights=False)[0]


class Rotary(nn.Module):
    """Positions as rotations, computed from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(16, 32)
        self.register_buffer("rates", 1 / 100 ** (torch.arange(0, 16, 2) / 16), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * self.rates
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.turned(t) for t in self.qk(x).chunk(2, -1))
        return (q @ k.mT / 4).softmax(-1) @ x


class Slopes(nn.Module):
    """Distances as a bias (ALiBi), masked by the user's own triangle."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        places = torch.arange(x.shape[1])
        distance = (places[None] - places[:, None]).float()
        scores = q @ k.mT / math.sqrt(8) + distance * torch.tensor([0.5, 0.25])[:, None, None]
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)


class Linearized(nn.Module):
    """Attention without softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        return (q @ (k.mT @ v)) / (q @ k.sum(1, keepdim=True).mT)


class Decoder(nn.Module):
    """A decoder over a memory, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 24, batch_first=True), 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(x, memory, tgt_mask=mask, tgt_is_causal=True)


class Cached(nn.Module):
    """Keys and values of the past come in, those of now go out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.qkv(x).chunk(3, -1)
        k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        return functional.scaled_dot_product_attention(q, k, v), (k, v)


LAYER = {"d_model": 16, "nhead": 2, "dim_feedforward": 24, "batch_first": True}
case("attention/plain", Heads, F(1, 7, 16))
case("attention/causal", lambda: Heads(is_causal=True), F(1, 7, 16))
case("attention/masked", lambda: Heads(attn_mask=torch.ones(7, 7, dtype=torch.bool).tril(1)), F(1, 7, 16))
case(
    "attention/bias-scale",
    lambda: Heads(attn_mask=torch.arange(49.0).reshape(7, 7).sin(), scale=0.7),
    F(1, 7, 16),
)
case("attention/grouped", Grouped, F(1, 7, 16))
case("attention/multi-head", Multi, (F(2, 7, 16), B(2, 7)))
case(
    "attention/multi-head-extras", lambda: Multi(add_bias_kv=True, add_zero_attn=True), (F(2, 7, 16), B(2, 7))
)
case("attention/other-widths", Across, (F(1, 5, 16), F(1, 7, 10), F(1, 7, 6)))
case("attention/rotary", Rotary, F(1, 6, 16), dynamic={"x": {1: "time"}}, other=F(1, 11, 16))
case("attention/slopes", Slopes, F(1, 6, 16), dynamic={"x": {0: "batch", 1: "time"}}, other=F(3, 9, 16))
case("attention/linear", Linearized, F(1, 7, 16))
case(
    "attention/encoder",
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER), 2),
    {"src": F(1, 6, 16)},
)
case(
    "attention/encoder-norm-first",
    lambda: nn.TransformerEncoderLayer(**LAYER, norm_first=True, activation="gelu"),
    {"src": F(1, 6, 16)},
)
case("attention/decoder", Decoder, (F(1, 5, 16), F(1, 7, 16)))
case("attention/cached", Cached, (F(1, 1, 8), (F(1, 5, 8), F(1, 5, 8))))


class Words(nn.Module):
    """Words to a score each, masked where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(30, 16), nn.TransformerEncoderLayer(**LAYER)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)
        y = self.layer(self.table(ids), src_key_padding_mask=mask == 0)
        return (y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


case("attention/words", Words, (I(30, 2, 8), I(2, 2, 8)))
