"""ResNet-20 for CIFAR-10 (He et al. 2016) with option A: shortcuts padded with zero channels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut; where the size changes, it is strided and padded."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.pad = (out - into) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, into, h, w]`` to ``[n, out, h / stride, w / stride]``."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """269,722 parameters, 40.6 million multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores ``[n, 10]`` of ``[n, 3, 32, 32]``."""
        x = functional.relu(self.bn1(self.conv1(image)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet20(data: Path) -> ResNet20:
    """With the published weights (91.8 % on the images without JPEG)."""
    from safetensors.torch import load_file

    model = ResNet20()
    model.load_state_dict(load_file(data / "resnet_cifar" / "resnet20.safetensors"))
    return model.eval()
