"""Normalization."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torture.case import F, case, image, rows


def settled(norm: Any) -> Any:
    """Running statistics and weights as training leaves them."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) + (0.5 if "mean" not in name else -0.5)
            )
    return norm.eval()


image("norm/batch", settled(nn.BatchNorm2d(8)))
image("norm/batch-plain", settled(nn.BatchNorm2d(8, affine=False)))
image("norm/batch-no-statistics", nn.BatchNorm2d(8, track_running_stats=False))
image("norm/group", settled(nn.GroupNorm(2, 8)))
image("norm/instance", settled(nn.InstanceNorm2d(8, affine=True)))
image("norm/instance-statistics", settled(nn.InstanceNorm2d(8, track_running_stats=True)))
image("norm/local-response", nn.LocalResponseNorm(3, 0.01, 0.7, 1.5))
image("norm/layer-image", settled(nn.LayerNorm((8, 12, 12))))
image("norm/channels", lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2))
rows("norm/layer", settled(nn.LayerNorm(8)))
rows("norm/layer-no-bias", settled(nn.LayerNorm(8, bias=False, eps=1e-3)))
rows("norm/root-mean-square", settled(nn.RMSNorm(8)))
rows("norm/batch-1d", settled(nn.BatchNorm1d(6)))
rows("norm/unit", lambda x: functional.normalize(x, dim=1) + functional.normalize(x, p=1.0, dim=-1))
rows("norm/cosine", lambda x: functional.cosine_similarity(x[:, :3], x[:, 3:], dim=-1))
rows("norm/standardized", lambda x: (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-5))
rows("norm/log-softmax", lambda x: functional.log_softmax(x, 1))


class Film(nn.Module):
    """A norm whose scale and shift are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8, affine=False)
        self.condition = nn.Linear(5, 16)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.condition(c)[..., None, None].chunk(2, 1)
        return torch.addcmul(shift, self.norm(self.conv(x)), 1 + scale)


case("norm/conditioned", Film, (F(1, 3, 9, 9), F(1, 5)))
