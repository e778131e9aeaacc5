"""Sources and data for ``tools/check_search.py``: four trained networks, what they may train on, what the search may
judge by, and what it never sees.

``EDGEKIT_DATA`` names the data's folder. Networks that have to be trained first are trained once and kept in the
user's cache folder.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.types import TorchModel

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "check-search"
sys.path[:0] = [str(ROOT / "tools"), *(str(ROOT / "examples" / n) for n in ("mnist_lossless", "minilm"))]

Samples = Iterator[tuple[dict[str, np.ndarray], int]]


def _kept(name: str, model: nn.Module, train: Callable[[nn.Module], None]) -> nn.Module:
    """``model`` with the weights that ``train`` gave it when it was first asked for."""
    from safetensors.torch import load_file, save_file

    path = CACHE / f"{name}-torch{torch.__version__}.safetensors"
    if not path.is_file():
        with torch.enable_grad():
            train(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)
        part.replace(path)
    model.load_state_dict(load_file(path))
    return model.eval()


def _rows(images: torch.Tensor | np.ndarray, labels: Any, name: str) -> Samples:
    for image, label in zip(np.asarray(images), np.asarray(labels), strict=True):
        yield {name: image[None]}, int(label)


def _named(model: nn.Module) -> nn.Module:
    class Named(nn.Module):
        """The input is called ``image``."""

        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(model)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.net(image)

    return Named().eval()


# --- LeNet-5 on MNIST -------------------------------------------------------------------------------------


@functools.cache
def _digits() -> Any:
    from mnist import digits

    return digits(DATA / "mnist")


def lenet5() -> TorchModel:
    """Caffe's LeNet-5, trained as in ``examples/mnist_lossless``."""
    from mnist import lenet_5

    from edgekit.compress.training.settings import Training
    from edgekit.compress.training.train import fit

    torch.manual_seed(0)
    model = _kept("lenet5", lenet_5(), lambda m: fit(m, _digits(), Training(epochs=5.0, rate=1.5e-3), seed=0))
    return TorchModel(
        module=_named(model),
        example_inputs={"image": torch.zeros(1, 1, 28, 28)},
        dynamic_axes={"image": {0: "n"}},
    )


def lenet5_train() -> Samples:
    """60,000 images."""
    return _rows(_digits().images, _digits().labels, "image")


def lenet5_eval() -> Samples:
    """Every second image of the test set."""
    return _rows(_digits().test_images[0::2], _digits().test_labels[0::2], "image")


def lenet5_unseen() -> Samples:
    """The others."""
    return _rows(_digits().test_images[1::2], _digits().test_labels[1::2], "image")


# --- ResNet-20 on CIFAR-10 --------------------------------------------------------------------------------

_CIFAR = ROOT / "examples" / "cifar_prune_quantize"


@functools.cache
def _objects(train: int = 20_000) -> Any:
    sys.path.insert(0, str(_CIFAR))
    from cifar import objects

    return objects(DATA, CACHE / "cifar10.npz", train=train)


def resnet20() -> TorchModel:
    """The published weights, tuned to the JPEGs for two epochs."""
    sys.path.insert(0, str(_CIFAR))
    from resnet import resnet20 as published

    from edgekit.compress.training.settings import Training
    from edgekit.compress.training.train import fit

    tuning = Training(epochs=2.0, rate=0.02, optimizer="sgd", weight_decay=5e-4)
    model = _kept("resnet20", published(DATA), lambda m: fit(m, _objects(50_000), tuning, seed=0))
    return TorchModel(
        module=model, example_inputs={"image": torch.zeros(1, 3, 32, 32)}, dynamic_axes={"image": {0: "n"}}
    )


def resnet20_train() -> Samples:
    """20,000 JPEGs."""
    from cifar import normalized

    task = _objects()
    return _rows(normalized(task.images), task.labels, "image")


def resnet20_eval() -> Samples:
    """Every second image of the test set (it is sorted by class)."""
    return _rows(_objects().test_images[0::2], _objects().test_labels[0::2], "image")


def resnet20_unseen() -> Samples:
    """The others."""
    return _rows(_objects().test_images[1::2], _objects().test_labels[1::2], "image")


# --- SqueezeNet 1.0 on ImageNet ---------------------------------------------------------------------------


@functools.cache
def _imagenet() -> tuple[list[np.ndarray], list[int]]:
    from real_networks import imagenet

    found = imagenet(227)
    mean = np.array([104, 117, 123], np.float32)
    images = [np.ascontiguousarray((i[:, :, ::-1] - mean).transpose(2, 0, 1), np.float32) for i, _ in found]
    return images, [label for _, label in found]


def squeezenet() -> TorchModel:
    """Deep Compression's dense weights."""
    from real_networks import SqueezeNet
    from safetensors.torch import load_file

    model = SqueezeNet()
    model.load_state_dict(load_file(DATA / "squeezenet" / "squeezenet1_0.safetensors"))
    example = {"image": torch.zeros(1, 3, 227, 227)}
    return TorchModel(module=_named(model.eval()), example_inputs=example, dynamic_axes={"image": {0: "n"}})


def _thousand(part: slice) -> Samples:
    images, labels = _imagenet()
    return _rows(np.stack(images[part]), labels[part], "image")


def squeezenet_calib() -> Iterator[dict[str, np.ndarray]]:
    """100 of the 1,000 images; too few to train on."""
    return (inputs for inputs, _ in _thousand(slice(0, 100)))


def squeezenet_eval() -> Samples:
    """450 images."""
    return _thousand(slice(100, 550))


def squeezenet_unseen() -> Samples:
    """The last 450."""
    return _thousand(slice(550, 1000))


# --- MiniLM on SST-2 --------------------------------------------------------------------------------------


class Sentiment(nn.Module):
    """``input_ids`` and ``attention_mask`` int64 ``[N, T]`` → scores ``[N, 2]``: the encoder and a linear head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(384, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids, attention_mask))


def _sentences(name: str) -> Samples:
    """Each sentence in its own length."""
    from minilm_tokens import tokenize

    for line in (DATA / "sst2" / name).read_text(encoding="utf-8").splitlines():
        text, label = line.rsplit("\t", 1)
        inputs = tokenize(text)
        length = int(inputs["attention_mask"].sum())
        yield {k: v[:, :length] for k, v in inputs.items()}, int(label)


def _fit_head(model: nn.Module) -> None:
    """Logistic regression on the encoder's embeddings of the training sentences."""
    from sklearn.linear_model import LogisticRegression

    embeddings, labels = [], []
    with torch.no_grad():
        for inputs, label in _sentences("train.tsv"):
            rows = {k: torch.from_numpy(v) for k, v in inputs.items()}
            embeddings.append(model.get_submodule("encoder")(**rows).numpy()[0])
            labels.append(label)
    found = LogisticRegression(max_iter=1000, C=10).fit(np.stack(embeddings), labels)
    head = model.get_submodule("head")
    weight, bias = found.coef_[0].astype(np.float32), float(found.intercept_[0])
    with torch.no_grad():
        head.get_parameter("weight").copy_(torch.from_numpy(np.stack([-weight / 2, weight / 2])))
        head.get_parameter("bias").copy_(torch.tensor([-bias / 2, bias / 2]))


def minilm() -> TorchModel:
    """The example's encoder with a head for SST-2."""
    from model import encoder

    found = encoder()
    model = _kept("minilm", Sentiment(found.module), _fit_head)
    return TorchModel(module=model, example_inputs=found.example_inputs, dynamic_axes=found.dynamic_axes)


def minilm_train() -> Samples:
    """6,920 sentences."""
    return _sentences("train.tsv")


def minilm_eval() -> Samples:
    """The 872 of the development set."""
    return _sentences("dev.tsv")


def minilm_unseen() -> Samples:
    """The 1,821 of the test set."""
    return _sentences("test.tsv")
