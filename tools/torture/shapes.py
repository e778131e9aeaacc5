"""Views, copies and moves."""

import torch

from torture.case import F, I, alone, both, image, rows

MOVES = {
    "as-strided": lambda x: torch.as_strided(x, (1, 3, 8), (48, 16, 1)),
    "block-diagonal": lambda x: torch.block_diag(x[0], x[0, :2] * 2)[None],
    "cat-negative": lambda x: torch.cat([x, x[:, :2] * 2], -2),
    "chunk-uneven": lambda x: torch.stack([c.sum(-1) for c in x.chunk(3, -1)], 1),
    "diagonal": lambda x: (torch.diagonal(x, 1, 1, 2), torch.diag_embed(x[:, 0], -1)),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 3, -1) * torch.arange(3.0)[:, None],
    "flip": lambda x: x.flip(1, 2) + x.fliplr(),
    "meshgrid": lambda x: sum(torch.meshgrid(x[0, 0], x[0, 1], indexing="ij"))[None],
    "movedim": lambda x: x.movedim(0, -1).swapaxes(0, 1).contiguous(),
    "narrow-select": lambda x: x.narrow(1, 1, 3) * x.select(2, -1)[:, :1, None],
    "repeat": lambda x: x.repeat(1, 2, 3) + x.tile(2, 3),
    "repeat-interleave": lambda x: (
        x.repeat_interleave(3, 1) + x.repeat_interleave(torch.tensor([9, 0, 2, 3, 1, 3]), 1)
    ),
    "roll": lambda x: torch.roll(x, (2, -3), (1, 2)) + torch.roll(x, 5),
    "rot90": lambda x: torch.rot90(x, 1, (1, 2)),
    "slice-steps": lambda x: x[:, ::2, 1:-1:3] + x[:, 1::2, -3::2],
    "split-sizes": lambda x: torch.cat([p * i for i, p in enumerate(x.split([1, 3, 2], 1))], 1),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(0).squeeze((0, 1)),
    "stack-unbind": lambda x: torch.stack(x.unbind(1)[::-1], 2),
    "tensor-split": lambda x: torch.cat([t.amax(1, keepdim=True) for t in x.tensor_split(4, 1)], 1),
    "triangles": lambda x: torch.tril(x, -1) - torch.triu(x, 2),
    "unflatten": lambda x: x.unflatten(2, (2, 4)).flatten(1, 2).mT,
    "view-as": lambda x: x.view_as(torch.empty(1, 4, 12)).reshape(-1, 2, 6),
    "ellipsis-none": lambda x: x[..., None, 2] * x[:, None, :, 0],
}
for _name, _what in MOVES.items():
    rows(f"shape/{_name}", _what)

image("shape/six-axes", lambda x: x.reshape(1, 2, 4, 3, 4, 12).permute(0, 3, 1, 5, 2, 4) + 1)
image("shape/permute-conv-order", lambda x: x.permute(0, 2, 3, 1).reshape(1, 24, -1).softmax(-1))
both("shape/kron", torch.kron, F(2, 3), F(3, 2))
both("shape/outer", torch.outer, F(5), F(4))
both("shape/cartesian", lambda x, y: torch.cartesian_prod(x, y), F(3), F(4))
alone("shape/vander", lambda x: torch.vander(x, 4), F(5))
alone(
    "shape/seven-axes", lambda x: x.reshape(2, 1, 3, 2, 2, 1, 2).permute(6, 4, 2, 0, 1, 3, 5) * 2, F(2, 3, 8)
)
alone("shape/empty", lambda x: torch.cat([x, x[:, 3:]], 1), F(2, 3))
alone("shape/scalar-output", lambda x: x.sum(), F(2, 3))
alone(
    "shape/of-shape",
    lambda x: x * x.shape[-1] + torch.tensor(x.shape).prod(),
    F(2, 3),
    dynamic={"x": {1: "n"}},
    other=F(2, 7),
)
alone(
    "shape/arange-of-size",
    lambda x: x + torch.arange(x.shape[1]),
    F(2, 5),
    dynamic={"x": {1: "n"}},
    other=F(2, 9),
)
alone(
    "shape/reshape-dynamic",
    lambda x: x.reshape(x.shape[0], -1, 2).sum(1),
    F(2, 6),
    dynamic={"x": {0: "batch"}},
    other=F(5, 6),
)
alone("shape/integer-move", lambda x: torch.stack([x, x.flip(0)]).transpose(0, 1), I(99, 4, 3))


def assigned(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1:3] *= 2
    y[:, :, ::2] = y[:, :, 1::2].abs()
    y[:, -1].add_(1.0)
    return y


def viewed(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(1, 8, 6)
    y.transpose(1, 2).copy_(x)
    y.view(-1)[3:9].mul_(0.5)
    return y.relu_()


def filled(x: torch.Tensor) -> torch.Tensor:
    y = x + 0
    y[x > 0.5] = 0.25
    y[:, [0, 3]] = torch.tensor([1.0, -1.0])[:, None]
    y.masked_fill_(x < -0.5, -0.5).clamp_(max=0.9)
    return y


rows("in-place/slices", assigned)
rows("in-place/views", viewed)
rows("in-place/fills", filled)
alone("in-place/input", lambda x: x.add_(1).mul_(2), F(3, 4))
