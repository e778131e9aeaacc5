"""What goes in and comes out: nests, dicts, nothing, keywords, constants."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torture.case import B, F, I, U, case


class Form(nn.Module):
    """A layer to begin with; subclasses say what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)


class Dict(Form):
    """A dict of tensors, one of them twice."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.layer(x)
        return {"logits": y, "best": y.argmax(-1), "again": y, "more": {"mean": y.mean(-1)}}


class Nothing(Form):
    """None among the outputs."""

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return y, None, [y.relu(), None], (None,)


class Fields(NamedTuple):
    """Named outputs."""

    scores: Tensor
    extra: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class Named(Form):
    """A named tuple."""

    def forward(self, x: Tensor) -> Fields:
        y = self.layer(x)
        return Fields(y, None, (y * 2, y.sum()))


@dataclass
class Record:
    """Outputs as a dataclass."""

    scores: Tensor
    hidden: list[Tensor]


class Data(Form):
    """A dataclass."""

    def forward(self, x: Tensor) -> Record:
        y = self.layer(x)
        return Record(scores=y.softmax(-1), hidden=[y, x])


class Ordered(Form):
    """An ordered dict with keys that are no identifiers."""

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return OrderedDict([("p3/cls", y), ("p4.box", y * 2), ("0", y.sum(1))])


class Numbers(Form):
    """A number and a text beside the tensor."""

    def forward(self, x: Tensor) -> Any:
        return {"y": self.layer(x), "stride": 8, "name": "head"}


class Same(Form):
    """The input itself, a constant, a parameter and a buffer."""

    def forward(self, x: Tensor) -> Any:
        return x, self.layer(x), torch.arange(3), self.layer.bias


class Keywords(Form):
    """Keywords only, one with a default."""

    def forward(self, *, x: Tensor, bias: Tensor | None = None, scale: float = 2.0) -> Tensor:
        y = self.layer(x) * scale
        return y if bias is None else y + bias


class Optional(Form):
    """An input that is left out."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        return y if mask is None else y * mask


class Lists(nn.Module):
    """A list of pictures at several scales."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 2, 3) for _ in range(2))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [conv(level).mean((2, 3)) for conv, level in zip(self.convs, levels, strict=True)]


class Batch(Form):
    """A dict as the one argument."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layer(batch["x"]) * batch["weight"]


class Many(Form):
    """Any number of inputs."""

    def forward(self, *parts: Tensor) -> Tensor:
        return self.layer(torch.cat(parts, -1))


class Unused(Form):
    """An input that nothing reads."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:  # noqa: ARG002
        return self.layer(x)


class Scalar(Form):
    """A scalar in, a scalar out."""

    def forward(self, x: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x) / temperature
        return y, y.logsumexp((0, 1))


class Mixed(nn.Module):
    """Floats, integers and booleans in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, keep: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer(self.table(ids) * weight[..., None]) * keep[..., None]
        return y, y.argmax(-1), keep & (ids > 3)


class Dynamic(nn.Module):
    """Batch and time are dynamic, in two inputs that share them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.layer(x) * mask[..., None]
        return y.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class Convolved(nn.Module):
    """Pictures of any size, one answer each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).mean((2, 3)))


class Cut(nn.Module):
    """Padded to a multiple of four, and cut again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        y = nn.functional.pad(x, (0, -n % 4))
        return self.conv(y).repeat_interleave(4, -1)[..., :n] + x


case("form/dict", Dict, F(2, 5))
case("form/none", Nothing, F(2, 5))
case("form/named-tuple", Named, F(2, 5))
case("form/dataclass", Data, F(2, 5))
case("form/odd-names", Ordered, F(2, 5))
case("form/numbers", Numbers, F(2, 5))
case("form/passed-through", Same, F(2, 5))
case("form/keywords", Keywords, {"x": F(2, 5), "bias": F(2, 4)})
case("form/optional", Optional, F(2, 5))
case("form/optional-given", Optional, {"x": F(2, 5), "mask": U(0, 1, 2, 4)})
case("form/list", Lists, ([F(1, 3, 9, 9), F(1, 3, 5, 5)],))
case("form/dict-argument", Batch, {"batch": {"x": F(2, 5), "weight": U(0, 1, 2, 1)}})
case("form/many", Many, (F(2, 2), F(2, 1), F(2, 2)))
case("form/unused-input", Unused, (F(2, 5), I(9, 2)))
case("form/scalar", Scalar, (F(2, 5), U(1, 3)))
case("form/mixed", Mixed, (I(9, 2, 6), B(2, 6), U(0, 1, 2, 6)))
MASKED = {"x": {0: "batch", 1: "time"}, "mask": {0: "batch", 1: "time"}}
case(
    "dynamic/masked-mean",
    Dynamic,
    (F(2, 6, 5), U(0, 1, 2, 6)),
    dynamic=MASKED,
    other=(F(4, 9, 5), U(0, 1, 4, 9)),
)
case(
    "dynamic/image",
    Convolved,
    F(1, 3, 16, 16),
    dynamic={"x": {0: "batch", 2: "h", 3: "w"}},
    other=F(3, 3, 24, 13),
)
case("dynamic/padded", Cut, F(1, 2, 10), dynamic={"x": {2: "length"}}, other=F(1, 2, 15))
