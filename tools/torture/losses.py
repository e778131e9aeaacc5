"""Losses as part of a module."""

from typing import Any

import torch
from torch import Tensor, nn

from torture.case import F, I, U, case


class Loss(nn.Module):
    """A layer and the loss of what it gives."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(6, 5), loss

    def forward(self, x: Tensor, target: Tensor) -> Any:
        y = self.layer(x)
        return y, self.loss(y, target)


FLOATS = {
    "mean-square": nn.MSELoss(),
    "absolute": nn.L1Loss(reduction="sum"),
    "huber": nn.HuberLoss(delta=0.5),
    "smooth": nn.SmoothL1Loss(reduction="none"),
    "divergence": nn.KLDivLoss(reduction="batchmean"),
    "binary-logits": nn.BCEWithLogitsLoss(pos_weight=torch.linspace(0.5, 2, 5)),
    "poisson": nn.PoissonNLLLoss(full=True),
    "soft-labels": nn.CrossEntropyLoss(label_smoothing=0.1),
    "multi-label-soft": nn.MultiLabelSoftMarginLoss(),
}
for _name, _loss in FLOATS.items():
    case(f"loss/{_name}", lambda loss=_loss: Loss(loss), (F(4, 6), U(0, 1, 4, 5)))
case(
    "loss/cross-entropy",
    lambda: Loss(nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 5))),
    (F(4, 6), I(5, 4)),
)
case("loss/ignored", lambda: Loss(nn.CrossEntropyLoss(ignore_index=2)), (F(4, 6), I(5, 4)))
case("loss/multi-margin", lambda: Loss(nn.MultiMarginLoss()), (F(4, 6), I(5, 4)))


class Triplet(nn.Module):
    """Three inputs through one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(6, 5), nn.TripletMarginLoss(margin=2.0)

    def forward(self, anchor: Tensor, near: Tensor, far: Tensor) -> Tensor:
        return self.loss(self.layer(anchor), self.layer(near), self.layer(far))


class Gaussian(nn.Module):
    """Mean and variance, and how likely the target is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(6, 4), nn.GaussianNLLLoss()

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.layer(x).chunk(2, -1)
        return mean, self.loss(mean, target, nn.functional.softplus(spread))


class Connectionist(nn.Module):
    """Connectionist temporal classification."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        scores = self.layer(x).log_softmax(-1)
        return nn.functional.ctc_loss(scores, target, torch.tensor([8, 8]), torch.tensor([3, 3]))


case("loss/triplet", Triplet, (F(4, 6), F(4, 6), F(4, 6)))
case("loss/gaussian", Gaussian, (F(4, 6), F(4, 2)))
case("loss/connectionist", Connectionist, (F(8, 2, 6), I(5, 2, 3, low=1)), reason=("ctc",))
