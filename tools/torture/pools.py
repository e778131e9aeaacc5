"""Pools."""

import torch
from torch import nn
from torch.nn import functional

from torture.case import image, rows, volume

image("pool/average-ceil", lambda x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True))
image("pool/average-ceil-uncounted", lambda x: functional.avg_pool2d(x, 5, 3, 2, True, False), 13)
image("pool/average-divisor", lambda x: functional.avg_pool2d(x, 2, 2, divisor_override=3))
image("pool/average-odd", lambda x: functional.avg_pool2d(x, (3, 2), (2, 1), (1, 0)))
image("pool/maximum-ceil", nn.MaxPool2d(3, 2, ceil_mode=True), 12)
image("pool/maximum-dilated", nn.MaxPool2d(3, 1, 1, dilation=2), 11)
image("pool/maximum-ceil-dilated", nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True), 11)
image("pool/maximum-indices", lambda x: functional.max_pool2d(x, 2, return_indices=True))
image("pool/unpool", lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2))
image("pool/adaptive-average", nn.AdaptiveAvgPool2d((5, 3)))
image("pool/adaptive-average-divides", nn.AdaptiveAvgPool2d((4, None)))
image("pool/adaptive-maximum", nn.AdaptiveMaxPool2d((5, 7)))
image("pool/adaptive-larger", nn.AdaptiveAvgPool2d((15, 12)))
image("pool/power-average", nn.LPPool2d(2, 3, 2))
image("pool/power-average-ceil", nn.LPPool2d(2, 3, 2, ceil_mode=True), 12)
image(
    "pool/fractional",
    lambda x: functional.fractional_max_pool2d(x, 2, (7, 6), _random_samples=torch.full((1, 8, 2), 0.4)),
)
image("pool/global", lambda x: (x.amax((2, 3)), x.mean((2, 3)), x.amin((2, 3))))
rows("pool/maximum-1d", nn.MaxPool1d(3, 2, 1), (6, 11))
rows("pool/average-1d-ceil", nn.AvgPool1d(4, 3, ceil_mode=True), (6, 12))
rows("pool/adaptive-1d", lambda x: (nn.AdaptiveAvgPool1d(5)(x), nn.AdaptiveMaxPool1d(3)(x)), (6, 11))
rows("pool/power-average-1d", nn.LPPool1d(2, 3, 1), (6, 11))
volume("pool/maximum-3d", nn.MaxPool3d(2, 2, ceil_mode=True), 7)
volume("pool/average-3d", nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False))
volume("pool/average-3d-divisor", nn.AvgPool3d(2, 2, divisor_override=5))
volume("pool/adaptive-average-3d", nn.AdaptiveAvgPool3d((4, 2, 5)))
volume("pool/adaptive-maximum-3d", nn.AdaptiveMaxPool3d((2, 4, 1)))
