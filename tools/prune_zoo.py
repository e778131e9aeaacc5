"""Structured pruning on many architectures: what remains in the exported ONNX, and what was left alone.

    make zoo-packages                      # torchvision and timm, once
    python tools/prune_zoo.py run [NAME…]  # results into docs/pruning.json, then docs/pruning.md
    python tools/prune_zoo.py table

Weights are random but for ResNet-20 (see --data). Every model is asked for half of its parameters and half of its
multiply-accumulates. Before and after are counted in the ONNX file that ``edgekit.export`` writes and checks
against the module in ONNX Runtime. "Same" is the largest difference, relative to the largest output, between the
cut module and the whole one with the same units set to zero.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.step import Context, forward
from edgekit.compress.structured import attention
from edgekit.compress.structured.cut import Plan
from edgekit.compress.structured.shrink import Shrink
from edgekit.graph.nested import flatten

ROOT = Path(__file__).resolve().parent.parent
Built = tuple[nn.Module, dict[str, torch.Tensor]]


class Block(nn.Module):
    """Of ResNet-20: where the size changes, the shortcut is strided and padded with zero channels (option A)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.pad = (out - into) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """He et al., for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Tagger(nn.Module):
    """Embedding, two-layer bidirectional recurrent net, a label for each token."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.rnn = (
            nn.Embedding(2000, 128),
            kind(128, 128, 2, batch_first=True, bidirectional=True),
        )
        self.out = nn.Linear(256, 9)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embed(ids))[0])


class UNet(nn.Module):
    """Encoder and decoder with concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.down = nn.ModuleList(self._double(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList((nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)))
        self.join = nn.ModuleList((self._double(128, 64), self._double(64, 32)))
        self.head = nn.Conv2d(32, 2, 1)

    @staticmethod
    def _double(into: int, out: int) -> nn.Sequential:
        first = (nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        return nn.Sequential(
            *first, nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for number, stage in enumerate(self.down):
            x = stage(x if number == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


def _image(name: str, size: int) -> Callable[[Path], Built]:
    def build(data: Path) -> Built:
        del data
        sys.path.insert(0, str(Path(__file__).parent))
        from zoo_models import torchvision_beside_cpu_torch

        torchvision_beside_cpu_torch.install()
        if name.startswith("timm/"):
            import timm

            return timm.create_model(name[5:], pretrained=False), {"x": torch.randn(1, 3, size, size)}
        import torchvision

        plain = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = getattr(torchvision.models, name)(weights=None, **plain)
        return model, {"x": torch.randn(1, 3, size, size)}

    return build


def _resnet20(data: Path) -> Built:
    from safetensors.torch import load_file

    model, weights = ResNet20(), data / "resnet_cifar" / "resnet20.safetensors"
    if weights.is_file():
        model.load_state_dict(load_file(weights))
    return model, {"x": torch.randn(1, 3, 32, 32)}


def _text(name: str) -> Callable[[Path], Built]:
    def build(data: Path) -> Built:
        del data
        import transformers as t

        ids = torch.arange(5, 37)[None]
        if name == "bert":
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return t.BertForSequenceClassification(t.BertConfig()), inputs
        return t.GPT2LMHeadModel(t.GPT2Config(use_cache=False)), {"input_ids": ids}

    return build


ZOO: dict[str, tuple[Callable[[Path], Built], str]] = {
    "resnet20-option-a": (_resnet20, "shortcut padded with channels"),
    "shufflenet_v2_x1_0": (_image("shufflenet_v2_x1_0", 64), "split, channel shuffle"),
    "lstm-tagger": (lambda _: (Tagger(nn.LSTM), {"ids": torch.arange(20)[None]}), "embedding, LSTM"),
    "gru-tagger": (lambda _: (Tagger(nn.GRU), {"ids": torch.arange(20)[None]}), "embedding, GRU"),
    "bert-base": (_text("bert"), "Hugging Face, as it is"),
    "gpt2": (_text("gpt2"), "fused q, k, v; tied embedding"),
    "vit_b_16": (_image("vit_b_16", 224), "nn.MultiheadAttention"),
    "timm/vit_tiny_patch16_224": (_image("timm/vit_tiny_patch16_224", 224), "fused q, k, v"),
    "swin_t": (_image("swin_t", 224), "shifted windows"),
    "mobilenet_v2": (_image("mobilenet_v2", 64), "depthwise"),
    "mobilenet_v3_small": (_image("mobilenet_v3_small", 64), "squeeze and excite"),
    "efficientnet_b0": (_image("efficientnet_b0", 64), "depthwise, squeeze and excite"),
    "densenet121": (_image("densenet121", 64), "concatenation"),
    "unet": (lambda _: (UNet(), {"x": torch.randn(1, 3, 32, 32)}), "concatenated skips"),
    "inception_v3": (_image("inception_v3", 139), "parallel branches"),
    "googlenet": (_image("googlenet", 64), "parallel branches"),
    "resnet50": (_image("resnet50", 64), "bottlenecks"),
    "resnext50_32x4d": (_image("resnext50_32x4d", 64), "grouped convolutions"),
    "regnet_y_400mf": (_image("regnet_y_400mf", 64), "groups, squeeze and excite"),
    "convnext_tiny": (_image("convnext_tiny", 64), "layer norm over channels"),
}


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    file = options.docs / "pruning.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name in (options.names or ZOO) if options.command == "run" else ():
        begin = time.monotonic()
        results[name] = _one(name, options.data)
        print(f"{name:28} {time.monotonic() - begin:6.1f} s  {json.dumps(results[name])}", flush=True)
        file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    (options.docs / "pruning.md").write_text(_page(results), encoding="utf-8")
    return 0


def _one(name: str, data: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = ZOO[name][0](data)
    model = attention.replace(model.eval())
    _settle(model)
    before, whole = _exported(model, inputs), copy.deepcopy(model)
    context = Context(example_inputs=inputs)
    model = Shrink(macs=0.5, parameters=0.5).apply(model, context)
    after = _exported(model, inputs)
    left = sorted(k.removesuffix("|left") for k in context.tensors if k.endswith("|left"))
    return {"before": before, "after": after, "left": left, "same": _same(whole, model, inputs, context)}


def _settle(model: nn.Module) -> None:
    """Random statistics, biases and layer scales, or cut and masked would agree too easily."""
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if float(parameter.detach().abs().max()) < 1e-4:
            parameter.data.normal_(0, 0.1, generator=random)
    for module in model.modules():
        mean = getattr(module, "running_mean", None)
        if mean is not None and not mean.any():
            mean.normal_(0, 0.1, generator=random)


def _exported(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """Parameters (entries of floating-point initialisers) and MACs of the exported file."""
    from edgekit.graph import io
    from edgekit.graph.export import export
    from edgekit.graph.macs import count_macs
    from edgekit.load.module import bind

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(bind(model, inputs, what="the zoo"), path)
        proto = io.read_proto(path)
        sizes = [_count(t.dims) for t in proto.graph.initializer if t.data_type == 1]
        return {"parameters": sum(sizes), "macs": sum(n.macs or 0 for n in count_macs(path))}


def _count(dims: Any) -> int:
    out = 1
    for d in dims:
        out *= d
    return out


def _same(whole: nn.Module, model: nn.Module, inputs: dict[str, torch.Tensor], context: Context) -> float:
    """Largest difference between the cut model and the masked one, relative to the largest output."""
    parameters = dict(whole.named_parameters())
    for (name, dim), kept in Plan.from_tensors(context.tensors).kept.items():
        if name in parameters:
            gone = torch.ones(parameters[name].shape[dim], dtype=torch.bool)
            gone[torch.from_numpy(kept)] = False
            parameters[name].data.index_fill_(dim, gone.nonzero()[:, 0], 0.0)
    with torch.no_grad():
        a, b = flatten(forward(whole, inputs)), flatten(forward(model, inputs))
    return max(float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp_min(1e-9)) for n in a)


def _page(results: dict[str, Any]) -> str:
    halved = sum(all(_share(r, k) <= 0.505 for k in ("parameters", "macs")) for r in results.values())
    rows = [
        f"| {name} | {ZOO[name][1]} | {r['before']['parameters'] / 1e6:.2f} M | {_share(r, 'parameters'):.1%} "
        f"| {r['before']['macs'] / 1e6:.0f} M | {_share(r, 'macs'):.1%} | {r['same']:.0e} "
        f"| {', '.join(r['left']) or '–'} |"
        for name, r in sorted(results.items(), key=lambda item: list(ZOO).index(item[0]))
    ]
    head = (
        "| architecture | what is special | parameters | left | MACs | left | cut against masked | left alone |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    about = (
        "# Structured pruning\n\nGenerated by `python tools/prune_zoo.py run`; do not edit. `shrink(macs=0.5;"
        "parameters=0.5)` on each architecture. Parameters and multiply-accumulates are those of the exported ONNX "
        "file. *Cut against masked*: the largest difference of an output between the cut module and the whole one "
        f"with the same units set to zero, relative to the largest output. {halved} of {len(results)} are halved in "
        "both.\n\n"
    )
    return about + head + "\n" + "\n".join(rows) + "\n"


def _share(result: dict[str, Any], what: str) -> float:
    return float(result["after"][what] / max(1, result["before"][what]))


if __name__ == "__main__":
    sys.exit(main())
