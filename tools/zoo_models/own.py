"""The registry of the networks in :mod:`zoo_models.vision` and :mod:`zoo_models.sequence`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo_models import Architecture, Inputs
from zoo_models import sequence as s
from zoo_models import vision as v


def _of(
    name: str, build: Callable[[], torch.nn.Module], settle_batch: int = 4, **shapes: tuple[int, ...]
) -> Architecture:
    """Float inputs of the given shapes, batch axis added."""

    def inputs(_: torch.nn.Module, batch: int) -> Inputs:
        return {key: torch.randn(batch, *shape) for key, shape in shapes.items()}

    return Architecture(name=f"own/{name}", build=build, inputs=inputs, settle_batch=settle_batch)


def _tokens(name: str, build: Callable[[], torch.nn.Module], limit: int, **lengths: int) -> Architecture:
    """Integer inputs below ``limit`` of the given lengths, batch axis added."""

    def inputs(_: torch.nn.Module, batch: int) -> Inputs:
        return {key: torch.randint(0, limit, (batch, length)) for key, length in lengths.items()}

    return Architecture(name=f"own/{name}", build=build, inputs=inputs)


def _graph(_: torch.nn.Module, __: int) -> Inputs:
    return {"nodes": torch.randn(20, 16), "edges": torch.randint(0, 20, (2, 50))}


def _clicks(_: torch.nn.Module, batch: int) -> Inputs:
    return {"dense": torch.randn(batch, 13), "sparse": torch.randint(0, 50, (batch, 4))}


def _stream(_: torch.nn.Module, batch: int) -> Inputs:
    state = torch.randn(2, batch, 64)
    return {"frames": torch.randn(batch, 1, 40), "hidden": state, "cell": state * 0.5}


ARCHITECTURES = (
    _tokens("lstm", lambda: s.RecurrentTagger("lstm"), 200, tokens=20),
    _tokens("bilstm-2", lambda: s.RecurrentTagger("lstm", 2, bidirectional=True), 200, tokens=20),
    _tokens("gru", lambda: s.RecurrentTagger("gru"), 200, tokens=20),
    _tokens("bigru-2", lambda: s.RecurrentTagger("gru", 2, bidirectional=True), 200, tokens=20),
    _tokens("rnn", lambda: s.RecurrentTagger("rnn", 2), 200, tokens=20),
    Architecture(name="own/streaming-lstm", build=s.StreamingLstm, inputs=_stream),
    _of("lstm-cells", s.LstmCells, x=(6, 16)),
    _tokens("seq2seq", s.Seq2Seq, 100, source=9, target=6),
    _of("keyword-ds-cnn", v.KeywordSpotter, mel=(1, 49, 10)),
    _of("spectrogram", s.Spectrogram, wave=(4000,)),
    _of("tcn", s.TemporalConvNet, x=(8, 64)),
    _of("wavenet", s.WaveNet, wave=(1, 200)),
    _of("conv-tasnet", s.ConvTasNet, mix=(1, 800)),
    _of("crnn-ocr", v.CrnnOcr, image=(1, 32, 96)),
    _of("unet-transposed", lambda: v.UNet("transposed"), image=(3, 64, 64)),
    _of("unet-bilinear", lambda: v.UNet("bilinear"), image=(3, 64, 64)),
    _of("unet-3d", v.UNet3d, volume=(1, 16, 16, 16)),
    _of("dcgan", v.Generator, noise=(64,)),
    _of("style-transfer", v.StyleTransfer, image=(3, 64, 64)),
    _of("espcn-bilinear", lambda: v.SuperResolution("bilinear"), image=(3, 24, 24)),
    _of("espcn-bicubic", lambda: v.SuperResolution("bicubic"), image=(3, 24, 24)),
    _of("yolo", v.YoloHead, image=(3, 64, 64)),
    _of("centernet", v.CenterNet, image=(3, 64, 64)),
    _of("spatial-transformer", v.SpatialTransformer, image=(1, 28, 28)),
    _of("pointnet", s.PointNet, points=(3, 128)),
    Architecture(name="own/graph-convolution", build=s.GraphConvolution, inputs=_graph, settle_batch=1),
    Architecture(name="own/dlrm", build=s.Dlrm, inputs=_clicks),
    _tokens("two-tower", s.TwoTower, 100, history=7),
    _tokens("deepfm", s.DeepFm, 300, fields=10),
    _tokens("transformer", s.Transformer, 100, source=10, target=7),
    _of("mixture-of-experts", s.MixtureOfExperts, x=(5, 16)),
    _of("activations", v.Activations, x=(4, 9, 11)),
    _of("pooling", v.Pooling, x=(4, 13, 17)),
    _of("resizing", v.Resizing, x=(4, 10, 15)),
    _of("autoencoder", s.Autoencoder, x=(640,)),
)
