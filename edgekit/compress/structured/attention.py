"""``torch.nn.MultiheadAttention`` with an inner width of its own, so that heads can be cut.

PyTorch's module takes the width of the heads from the width of the input. This one has the same parameters
under the same names, so that weights go from one to the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.compress import constraints


class Attention(nn.Module):
    """Drop-in for evaluation and training; shapes as in :class:`torch.nn.MultiheadAttention`."""

    # Keeps nn.TransformerEncoderLayer from calling a kernel on the weights itself.
    _qkv_same_embed_dim = False
    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor

    def __init__(self, base: nn.MultiheadAttention) -> None:
        super().__init__()
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(name, getattr(base, name))
        self.out_proj = nn.Linear(1, 1)
        self.out_proj.weight, self.out_proj.bias = base.out_proj.weight, base.out_proj.bias
        constraints.lay(self.out_proj, *constraints.of(base.out_proj))
        self.out_proj.in_features, self.out_proj.out_features = base.embed_dim, base.embed_dim
        self.num_heads, self.head_dim = base.num_heads, base.head_dim
        self.dropout, self.batch_first = base.dropout, base.batch_first
        self.train(base.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; weights ``[batch, positions, attended]`` (of each head, not averaged: a dimension more)."""
        del is_causal  # a hint: the mask that comes with it says the same
        batched = query.dim() == 3
        if batched and not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        elif not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        q, k, v = (
            x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2) for x in self._project(query, key, value)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            out = functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            scale = self.head_dim**-0.5
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        inputs = (query, key, value)
        if self.in_proj_weight is not None:
            weights: tuple[Tensor, ...] = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        offset = self.in_proj_bias
        bias = (None, None, None) if offset is None else offset.chunk(3)
        return tuple(functional.linear(x, w, b) for x, w, b in zip(inputs, weights, bias, strict=True))

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to ``[batch, heads, positions, attended]`` scores."""
        total = None
        if mask is not None:
            total = _added(mask, q)
            if total.dim() == 3:  # [batch * heads, …]
                total = total.view(q.shape[0], -1, *total.shape[1:])
        if padding is not None:
            hidden = _added(padding, q)
            hidden = hidden[:, None, None, :] if hidden.dim() == 2 else hidden
            total = hidden if total is None else total + hidden
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def replace(model: nn.Module) -> nn.Module:
    """Replace every :class:`torch.nn.MultiheadAttention` in place where heads can then be cut."""
    if _fits(model):
        return Attention(model)  # type: ignore[arg-type]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _fits(child):
                setattr(module, name, Attention(child))  # type: ignore[arg-type]
    return model


def _fits(module: nn.Module) -> bool:
    if type(module) is not nn.MultiheadAttention:  # a subclass may do something else
        return False
    return getattr(module, "bias_k", None) is None and not module.add_zero_attn
