"""Resizing and sampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from torture.case import F, case, image, rows, volume

MODES = {
    "nearest": {"scale_factor": 2},
    "nearest-exact": {"size": (7, 17)},
    "nearest-odd": {"mode": "nearest", "size": (17, 5)},
    "bilinear": {"scale_factor": 1.5},
    "bilinear-aligned": {"mode": "bilinear", "size": (9, 20), "align_corners": True},
    "bilinear-antialias": {"mode": "bilinear", "size": (5, 7), "antialias": True},
    "bicubic": {"size": (20, 9)},
    "bicubic-aligned": {"mode": "bicubic", "scale_factor": 2, "align_corners": True},
    "bicubic-antialias": {"mode": "bicubic", "size": (7, 5), "antialias": True},
    "area": {"size": (5, 4)},
    "recomputed": {"mode": "bilinear", "scale_factor": 1.7, "recompute_scale_factor": True},
}
for _name, _how in MODES.items():
    image(f"resize/{_name}", lambda x, how=({"mode": _name} | _how): functional.interpolate(x, **how))
rows("resize/linear", lambda x: functional.interpolate(x, scale_factor=2.5, mode="linear"))
volume("resize/trilinear", lambda x: functional.interpolate(x, size=(4, 9, 7), mode="trilinear"))
volume("resize/nearest-3d", lambda x: functional.interpolate(x, scale_factor=(2, 1, 1.5)))

for _mode in ("bilinear", "nearest", "bicubic"):
    for _margin in ("zeros", "border", "reflection"):

        def _sampled(x: Tensor, mode: str = _mode, margin: str = _margin) -> Tensor:
            grid = torch.tanh(x[:, :2].permute(0, 2, 3, 1)[:, :5, :6] * 3) * 1.3
            return functional.grid_sample(x, grid, mode, margin, align_corners=mode == "bicubic")

        image(f"sample/{_mode}-{_margin}", _sampled)


class Transformer(nn.Module):
    """A spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(3 * 64, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.place(x.flatten(1)).reshape(-1, 2, 3) * 0.3 + torch.eye(2, 3)
        return functional.grid_sample(
            x, functional.affine_grid(theta, [1, 3, 6, 6], False), align_corners=False
        )


class ToInput(nn.Module):
    """Resized to another tensor's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.interpolate(self.up(self.down(x)), size=x.shape[-2:], mode="bilinear")
        return y + x


case("sample/transformer", Transformer, F(1, 3, 8, 8))
case(
    "resize/to-input",
    ToInput,
    F(1, 3, 10, 13),
    dynamic={"x": {2: "height", 3: "width"}},
    other=F(1, 3, 17, 9),
)
