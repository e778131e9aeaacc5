"""Networks of our own for the zoo that work on images: detection, segmentation, generation, text.

Small and with random weights: what counts is which operators they export to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class KeywordSpotter(nn.Module):
    """DS-CNN over a mel spectrogram ``[N, 1, 49, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(nn.Sequential(conv_bn(64, 64, groups=64), conv_bn(64, 64, 1)) for _ in range(4))
        )
        self.head = nn.Sequential(nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12), nn.Softmax(-1))

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(mel))[..., :25, :5])


class CrnnOcr(nn.Module):
    """Convolutions, columns to a sequence, bidirectional LSTM, log-softmax for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            conv_bn(1, 32), nn.MaxPool2d(2), conv_bn(32, 64), nn.MaxPool2d((2, 1)), conv_bn(64, 64),
            nn.MaxPool2d((8, 1)),
        )  # fmt: skip
        self.rnn = nn.LSTM(64, 48, bidirectional=True, num_layers=2)
        self.head = nn.Linear(96, 37)

    def forward(self, image: Tensor) -> Tensor:
        columns = self.cnn(image).squeeze(2).permute(2, 0, 1)
        return self.head(self.rnn(columns)[0]).log_softmax(-1)


class UNet(nn.Module):
    """Encoder, decoder with skips; ``up`` is a transposed convolution or bilinear interpolation."""

    def __init__(self, up: str) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_bn(3, 16), conv_bn(16, 32), conv_bn(32, 64)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 4, 2, 1)])
        self.shrink = nn.ModuleList([nn.Conv2d(64, 32, 1), nn.Conv2d(32, 16, 1)])
        self.merge = nn.ModuleList([conv_bn(64, 32), conv_bn(32, 16)])
        self.head, self.up = nn.Conv2d(16, 4, 1), up

    def forward(self, image: Tensor) -> Tensor:
        skips, x = [], image
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for i, merge in enumerate(self.merge):
            if self.up == "transposed":
                x = self.grow[i](x)
            else:
                x = F.interpolate(self.shrink[i](x), scale_factor=2, mode=self.up, align_corners=False)
            x = merge(torch.cat([x, skips[1 - i]], dim=1))
        return self.head(x)


class UNet3d(nn.Module):
    """Volumetric segmentation: 3-D convolution, pooling, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1), nn.InstanceNorm3d(16), nn.LeakyReLU(0.1))
        self.up, self.head = nn.ConvTranspose3d(16, 8, 2, 2), nn.Conv3d(16, 3, 1)

    def forward(self, volume: Tensor) -> Tensor:
        a = self.a(volume)
        return self.head(torch.cat([a, self.up(self.b(F.max_pool3d(a, 2)))], dim=1))


class Generator(nn.Module):
    """DCGAN generator."""

    def __init__(self) -> None:
        super().__init__()

        def layer(i: int, o: int, stride: int, padding: int) -> list[nn.Module]:
            return [nn.ConvTranspose2d(i, o, 4, stride, padding, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

        self.net = nn.Sequential(
            *layer(64, 64, 1, 0), *layer(64, 32, 2, 1), *layer(32, 16, 2, 1),
            nn.ConvTranspose2d(16, 3, 3, 2, 1, output_padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        return self.net(noise[..., None, None])


class StyleTransfer(nn.Module):
    """Reflection padding, instance norm, residual blocks, nearest up-sampling."""

    def __init__(self) -> None:
        super().__init__()

        def layer(i: int, o: int, k: int, s: int) -> list[nn.Module]:
            pad = nn.ReflectionPad2d(k // 2)
            return [pad, nn.Conv2d(i, o, k, s), nn.InstanceNorm2d(o, affine=True), nn.ReLU()]

        self.down = nn.Sequential(*layer(3, 16, 9, 1), *layer(16, 32, 3, 2))
        self.body = nn.Sequential(*layer(32, 32, 3, 1), *layer(32, 32, 3, 1)[:-1])
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), *layer(32, 16, 3, 1), *layer(16, 3, 9, 1)[:2])

    def forward(self, image: Tensor) -> Tensor:
        x = self.down(image)
        return self.up(x + self.body(x))


class SuperResolution(nn.Module):
    """ESPCN: convolutions and a pixel shuffle, over a bicubic or bilinear base."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 27, 3, padding=1), nn.PixelShuffle(3)
        )
        self.base = base

    def forward(self, image: Tensor) -> Tensor:
        base = F.interpolate(image, scale_factor=3, mode=self.base, align_corners=False)
        return (base + self.net(image)).clamp(0, 1)


class YoloHead(nn.Module):
    """Anchor-based detector with SiLU backbone, SPPF, top-down path and box decoding."""

    def __init__(self, classes: int = 20) -> None:
        super().__init__()

        def block(i: int, o: int, s: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.SiLU())

        self.c1, self.c2 = nn.Sequential(block(3, 16, 2), block(16, 32, 2)), block(32, 64, 2)
        self.pool, self.mix = nn.MaxPool2d(5, 1, 2), nn.Conv2d(256, 64, 1)
        self.top = block(96, 32)
        self.heads = nn.ModuleList([nn.Conv2d(32, 3 * (5 + classes), 1), nn.Conv2d(64, 3 * (5 + classes), 1)])
        self.register_buffer("anchors", torch.tensor([[10.0, 13], [16, 30], [33, 23]]))
        self.classes = classes

    def forward(self, image: Tensor) -> Tensor:
        low = self.c1(image)
        x = self.c2(low)
        p1 = self.pool(x)
        p2 = self.pool(p1)
        x = self.mix(torch.cat([x, p1, p2, self.pool(p2)], 1))
        low = self.top(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), low], 1))
        return torch.cat(
            [self.decode(h(f), s) for h, f, s in zip(self.heads, (low, x), (4, 8), strict=True)], 1
        )

    def decode(self, raw: Tensor, stride: int) -> Tensor:
        n, _, h, w = raw.shape
        raw = raw.view(n, 3, 5 + self.classes, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([xs, ys], -1)
        xy = (raw[..., :2] * 2 - 0.5 + grid) * stride
        wh = (raw[..., 2:4] * 2) ** 2 * self.anchors[:, None, None]
        return torch.cat([xy, wh, raw[..., 4:]], -1).reshape(n, -1, 5 + self.classes)


class CenterNet(nn.Module):
    """Heat map, peak picking by max pooling, the best k with their offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16, stride=2), conv_bn(16, 32, stride=2))
        self.heat, self.size = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(image)
        heat = self.heat(x).sigmoid()
        heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
        scores, index = heat.flatten(1).topk(8)
        cell = index % (heat.shape[2] * heat.shape[3])
        size = self.size(x).flatten(2).transpose(1, 2)
        return scores, index, size.gather(1, cell[..., None].expand(-1, -1, 2))


class SpatialTransformer(nn.Module):
    """Predicts an affine map and samples the image with it."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(
            conv_bn(1, 8, stride=2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
        )
        self.head = nn.Sequential(conv_bn(1, 8), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, image: Tensor) -> Tensor:
        theta = self.locate(image).view(-1, 2, 3)
        grid = F.affine_grid(theta, [image.shape[0], 1, 28, 28], align_corners=False)
        return self.head(F.grid_sample(image, grid, align_corners=False))


class Activations(nn.Module):
    """Every activation of torch.nn that takes one tensor, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.ELU(), nn.CELU(1.3), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(),
                nn.Softplus(2.0, 1.0), nn.Softsign(), nn.Tanhshrink(), nn.Hardtanh(-0.7, 0.9), nn.Hardswish(),
                nn.Hardsigmoid(), nn.Hardshrink(0.1), nn.Softshrink(0.05), nn.LeakyReLU(0.2), nn.LogSigmoid(),
                nn.PReLU(4), nn.ReLU6(), nn.Threshold(0.1, -0.2), nn.Softmin(1), nn.Softmax2d(), nn.LogSoftmax(1),
                nn.GLU(1),
            ]
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


class Pooling(nn.Module):
    """Poolings with ceil mode, padding that is not counted, adaptive sizes, powers."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.max_pool2d(x, (3, 2), (2, 1), (1, 0), dilation=(2, 1)),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.adaptive_avg_pool2d(x, (3, 5)),
            F.adaptive_max_pool2d(x, (1, 1)),
            F.lp_pool2d(x.abs() + 0.1, 2.0, 2),
            F.avg_pool1d(x.flatten(2), 4, 2),
            F.max_pool1d(x.flatten(2), 4, 3),
        )


class Resizing(nn.Module):
    """Interpolation in every mode that torch has for images, up and down."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.interpolate(x, scale_factor=2.0, mode="nearest"),
            F.interpolate(x, size=(11, 7), mode="nearest"),
            F.interpolate(x, size=(11, 7), mode="nearest-exact"),
            F.interpolate(x, size=(21, 14), mode="bilinear", align_corners=True),
            F.interpolate(x, size=(9, 30), mode="bilinear", align_corners=False),
            F.interpolate(x, size=(20, 30), mode="bicubic", align_corners=False),
            F.interpolate(x.flatten(2), size=50, mode="linear", align_corners=False),
        )
