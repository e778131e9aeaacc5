"""Convolutions, their transposes, and what moves windows."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torture.case import F, case, image, volume


def layers(name: str, build: Any, *shape: int) -> None:
    """A chain of layers over one input."""
    case(f"convolution/{name}", lambda: nn.Sequential(*build()), F(*shape))


layers(
    "dilated-grouped", lambda: (nn.Conv2d(4, 8, 3, dilation=2, groups=2, padding=2), nn.ReLU()), 1, 4, 11, 9
)
layers(
    "depthwise-multiplier", lambda: (nn.Conv2d(6, 12, 5, 2, 1, groups=6), nn.Conv2d(12, 4, 1)), 1, 6, 15, 13
)
layers("same", lambda: (nn.Conv2d(3, 5, (4, 3), padding="same"), nn.ReLU(), nn.Conv2d(5, 2, 2)), 1, 3, 10, 9)
layers("circular", lambda: (nn.Conv2d(3, 6, 5, padding=2, padding_mode="circular"),), 1, 3, 9, 10)
layers("reflect", lambda: (nn.Conv2d(3, 6, 5, padding=2, padding_mode="reflect"),), 1, 3, 9, 10)
layers("replicate-1d", lambda: (nn.Conv1d(3, 6, 5, padding=2, padding_mode="replicate"),), 1, 3, 20)
layers(
    "asymmetric",
    lambda: (nn.Conv2d(3, 6, (1, 7), (1, 3), (0, 3)), nn.Conv2d(6, 4, (5, 1), (2, 1))),
    1,
    3,
    12,
    20,
)
layers("1d-causal", lambda: (nn.ConstantPad1d((4, 0), 0.5), nn.Conv1d(4, 6, 3, dilation=2)), 1, 4, 24)
layers(
    "3d-strided",
    lambda: (nn.Conv3d(2, 4, 3, (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(4, 2, (2, 1, 1))),
    1,
    2,
    5,
    8,
    7,
)
layers("3d-grouped", lambda: (nn.Conv3d(4, 8, 3, groups=4, dilation=(1, 2, 1)),), 1, 4, 6, 8, 7)
layers("transposed", lambda: (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.ReLU()), 1, 4, 7, 6)
layers("transposed-grouped", lambda: (nn.ConvTranspose2d(4, 8, 4, 2, groups=2, dilation=2),), 1, 4, 6, 5)
layers("transposed-1d", lambda: (nn.ConvTranspose1d(4, 3, 8, 4, 2),), 1, 4, 10)
layers("transposed-3d", lambda: (nn.ConvTranspose3d(2, 3, 3, 2, 1, output_padding=(1, 0, 1)),), 1, 2, 4, 5, 3)
layers("batch-of-three", lambda: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()), 3, 3, 8, 8)
layers("without-batch", lambda: (nn.Conv2d(3, 4, 3), nn.Hardswish()), 3, 8, 8)


class Dynamic(nn.Module):
    """The kernel is computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(4, 4 * 9)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.make(x.mean((2, 3))).reshape(4, 1, 3, 3)
        return functional.conv2d(x, kernel, padding=1, groups=4)


case("convolution/computed-kernel", Dynamic, F(1, 4, 8, 8))


class Shared(nn.Module):
    """One convolution at three scales, and its weight once more, as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + functional.interpolate(self.conv(x[..., ::2, ::2]), scale_factor=2.0)
        return y * self.conv.weight.mean()


case("convolution/shared-weight", Shared, F(1, 3, 8, 8))

image("window/unfold", lambda x: functional.unfold(x, 3, padding=1, stride=2))
image("window/fold", lambda x: functional.fold(functional.unfold(x, 2, stride=2) * 2, (12, 12), 2, stride=2))
image(
    "window/fold-overlapping",
    lambda x: functional.fold(functional.unfold(x, 3, padding=1), (12, 12), 3, padding=1),
)
image("window/tensor-unfold", lambda x: x.unfold(2, 4, 2).amax(-1))
image("window/pixel-shuffle", lambda x: functional.pixel_shuffle(x, 2) ** 2)
image("window/pixel-unshuffle", lambda x: functional.pixel_unshuffle(x, 3).relu())
image("window/channel-shuffle", lambda x: functional.channel_shuffle(x, 4).cumsum(1))
for _mode in ("constant", "reflect", "replicate", "circular"):
    image(f"padding/{_mode}", lambda x, mode=_mode: functional.pad(x, (2, 1, 0, 3), mode=mode).square())
    volume(
        f"padding/{_mode}-3d", lambda x, mode=_mode: functional.pad(x, (1, 2, 0, 1, 2, 0), mode=mode).square()
    )
image("padding/negative", lambda x: functional.pad(x, (-2, 1, -1, -3)))
image("padding/infinite", lambda x: torch.exp(functional.pad(x, (1, 1), value=float("-inf"))))
