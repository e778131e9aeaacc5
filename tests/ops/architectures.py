"""Small modules of many kinds: (module, example inputs, dynamic axes)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = {0: "batch"}
TEXT = {0: "batch", 1: "sequence"}


class ResNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
            self.na, self.nb = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
            self.skip = (
                nn.Identity()
                if i == o and stride == 1
                else nn.Sequential(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o))
            )

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.skip(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.layers = nn.Sequential(self.Block(8, 8, 1), self.Block(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class MobileNetV2(nn.Module):
    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            h = i * 6
            self.body = nn.Sequential(
                nn.Conv2d(i, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU6(),
                nn.Conv2d(h, h, 3, stride, 1, groups=h, bias=False), nn.BatchNorm2d(h), nn.ReLU6(),
                nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o),
            )  # fmt: skip
            self.residual = i == o and stride == 1

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x) if self.residual else self.body(x)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), self.Block(8, 8, 1), self.Block(8, 12, 2))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        a = F.leaky_relu(self.down1(image))
        b = F.silu(self.norm(self.down2(a)))
        up = F.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=False)[:, :8] + self.up(b)
        return self.out(torch.cat([a, up], 1)).softmax(1)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(40, 16), nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(24, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, (h, c) = self.rnn(self.embed(ids))
        return self.out(y), (h, c)


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 12, batch_first=True)

    def forward(self, x: Tensor, state: Tensor | None = None) -> dict[str, Tensor]:
        y, h = self.rnn(x, state)
        return {"features": y, "state": h}


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, 8), nn.Embedding(50, 8)
        self.mlp = nn.Sequential(nn.Linear(20, 16), nn.Hardswish(), nn.Linear(16, 1), nn.Sigmoid())

    def forward(self, user: Tensor, item: Tensor, dense: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.mlp(torch.cat([self.user(user), self.item(item), dense], -1)).squeeze(-1) * scale


@dataclasses.dataclass
class Detections:
    boxes: Tensor
    scores: Tensor
    levels: list[Tensor]
    count: int = 3


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.box, self.cls = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(16, 9, 1)
        self.register_buffer("anchors", torch.rand(3, 4))

    def forward(self, pixels: Tensor) -> Detections:
        f = F.gelu(self.body(pixels))
        boxes = self.box(f).reshape(pixels.shape[0], 3, 4, -1) * self.anchors[None, :, :, None]
        scores, labels = self.cls(f).reshape(pixels.shape[0], 3, 3, -1).max(2)
        return Detections(boxes.flatten(3), scores.sigmoid(), [f, labels])


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor, mask: Tensor) -> Pair:
        y, weights = self.attention(x, x, x, key_padding_mask=~mask)
        return Pair(self.norm(x + y), weights)


class Tied(nn.Module):
    """Output weights that are the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(ids)))


class Odd(nn.Module):
    """Positional-only, a list, a dict, an option, and a scalar tensor; nested outputs with constants."""

    def forward(
        self,
        x: Tensor,
        /,
        features: list[Tensor],
        extra: dict[str, Tensor],
        mode: str = "sum",
        *,
        gain: Tensor,
    ) -> Any:
        total = x + sum(features) if mode == "sum" else x
        return [{"a": total * gain, "b": (extra["bias"] - total, None)}, total.argmax(-1), 3]


class Star(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.stack(tensors).amax(0)


class Keywords(nn.Module):
    def forward(self, **tensors: Tensor) -> Tensor:
        return tensors["left"] @ tensors["right"]


class SameName(nn.Module):
    """An output with the name of an input, an input given back, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor, unused: Tensor) -> dict[str, Tensor]:
        return {"x": x * 2, "same": x, "table": self.table}


class Conformerish(nn.Module):
    """Audio: 1-D convolutions, GLU, depthwise, squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.pw, self.dw = nn.Conv1d(20, 32, 1), nn.Conv1d(16, 16, 9, padding=4, groups=16)
        self.norm, self.se = nn.BatchNorm1d(16), nn.Linear(16, 16)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.silu(self.norm(self.dw(F.glu(self.pw(mel), 1))))
        return (x * self.se(x.mean(-1)).sigmoid()[..., None]).mean(-1)


def hugging_face(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ids = torch.arange(3, 10)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = {"pixel_values": torch.randn(1, 3, 32, 32)}
    if name == "bert":
        return t.BertForSequenceClassification(t.BertConfig(vocab_size=50, num_labels=3, **small)), text
    if name == "distilbert":
        config = t.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        return t.DistilBertForTokenClassification(config), text
    if name == "gpt2":
        config = t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False)
        return t.GPT2LMHeadModel(config), text
    if name == "vit":
        return t.ViTForImageClassification(
            t.ViTConfig(image_size=32, patch_size=8, num_labels=4, **small)
        ), pixels
    if name == "t5":
        config = t.T5Config(
            vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, use_cache=False
        )
        return t.T5EncoderModel(config), text
    if name == "mobilenet_v2":
        return t.MobileNetV2ForImageClassification(
            t.MobileNetV2Config(depth_multiplier=0.35, image_size=64)
        ), {"pixel_values": torch.randn(1, 3, 64, 64)}
    if name == "llama":
        config = t.LlamaConfig(vocab_size=50, use_cache=False, num_key_value_heads=2, **small)
        return t.LlamaForCausalLM(config), text
    if name == "wav2vec2":
        config = t.Wav2Vec2Config(
            vocab_size=20, conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **small,
        )  # fmt: skip
        return t.Wav2Vec2ForCTC(config), {"input_values": torch.randn(1, 1600)}
    raise KeyError(name)


def own(name: str) -> tuple[nn.Module, Any, dict[str, dict[int, str]]]:
    image, seed = torch.randn(1, 3, 32, 32), torch.randn
    ids = torch.randint(0, 20, (1, 7))
    cases: dict[str, tuple[nn.Module, Any, dict[str, dict[int, str]]]] = {
        "resnet": (ResNet(), image, {"x": BATCH}),
        "mobilenet": (MobileNetV2(), (image,), {}),
        "unet": (UNet(), seed(1, 1, 16, 16), {"image": BATCH}),
        "lstm": (Lstm(), ids, {"ids": TEXT}),
        "gru": (Gru(), {"x": seed(1, 5, 6), "state": seed(1, 1, 12)}, {}),
        "gru without state": (Gru(), seed(1, 5, 6), {"x": TEXT}),
        "recommender": (
            Recommender(),
            {"user": torch.tensor([3, 4]), "item": torch.tensor([7, 0]), "dense": seed(2, 4)},
            {"user": BATCH, "item": BATCH, "dense": BATCH},
        ),
        "detector": (Detector(), seed(1, 3, 32, 32), {"pixels": BATCH}),
        "attention": (
            Attention(),
            (seed(1, 6, 16), torch.tensor([[True] * 5 + [False]])),
            {"x": TEXT, "mask": TEXT},
        ),
        "tied": (Tied(), ids, {"ids": BATCH}),
        "odd": (
            Odd(),
            {
                "x": seed(2, 3),
                "features": [seed(2, 3), seed(2, 3)],
                "extra": {"bias": seed(3)},
                "gain": torch.tensor(2.0),
            },
            {},
        ),
        "star": (Star(), (seed(2, 3), seed(2, 3)), {}),
        "keywords": (Keywords(), {"left": seed(2, 3), "right": seed(3, 4)}, {"left": BATCH}),
        "same name": (SameName(), (seed(1, 4), seed(1, 2)), {"x": BATCH}),
        "conformer": (Conformerish(), seed(1, 20, 50), {"mel": {0: "batch", 2: "frames"}}),
    }
    return cases[name]


OWN = (
    "resnet", "mobilenet", "unet", "lstm", "gru", "gru without state", "recommender", "detector", "attention", "tied",
    "odd", "star", "keywords", "same name", "conformer",
)  # fmt: skip
HUGGING_FACE = ("bert", "distilbert", "gpt2", "vit", "t5", "mobilenet_v2", "llama", "wav2vec2")
