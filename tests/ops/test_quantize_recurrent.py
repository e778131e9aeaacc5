"""Recurrent layers: stored as integers for every runtime, computed on them where the runtime can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from backend_models import run, snr_db
from quantize_support import Items, exported
from torch import nn

from edgekit.core import plugins, targets
from edgekit.graph import io
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import OnnxModel, Placement

WEIGHTS = ("ort-int8-weights", "openvino-int8-weights", "tflite-int8-weights", "ort-int4-weights")


class Tagger(nn.Module):
    """A recurrent layer with a head on every step."""

    def __init__(self, cell: type[nn.Module], **how: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = cell(24, 32, batch_first=True, **how)
        self.head = nn.Linear(64 if how.get("bidirectional") else 32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0])


CELLS = {
    "LSTM": (nn.LSTM, {}),
    "two LSTM": (nn.LSTM, {"num_layers": 2}),
    "LSTM both ways": (nn.LSTM, {"bidirectional": True}),
    "GRU": (nn.GRU, {}),
    "GRU both ways": (nn.GRU, {"bidirectional": True}),
    "RNN": (nn.RNN, {}),
}


def inputs(steps: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, steps, 24)).astype(np.float32)


def tagger(cell: str, folder: Path, steps: int = 9) -> OnnxModel:
    kind, how = CELLS[cell]
    return exported(Tagger(kind, **how).eval(), {"x": torch.zeros(1, steps, 24)}, folder)


class Listener(nn.Module):
    """Convolutions in front of a recurrent layer: static schemes quantize those."""

    def __init__(self, cell: type[nn.Module], **how: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(24, 48, 5, padding=2)
        self.cell = cell(48, 32, batch_first=True, **how)
        self.head = nn.Linear(64 if how.get("bidirectional") else 32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2))[0])


def listener(cell: str, folder: Path, steps: int = 9) -> OnnxModel:
    kind, how = CELLS[cell]
    return exported(Listener(kind, **how).eval(), {"x": torch.zeros(1, steps, 24)}, folder)


def calibrated(model: OnnxModel, folder: Path, x: np.ndarray) -> FloatModel:
    samples = Items([{"x": x}, {"x": -x}])
    return FloatModel(model, calibrate(model, samples, out=folder / "calibration"), samples)


def built(
    model: OnnxModel, name: str, folder: Path, x: np.ndarray, *, static: bool = False
) -> tuple[float, float, Placement]:
    """SNR in dB, the share of integer weights in the files, the placement."""
    target = targets.find(name)
    # Seven bits: with eight, sums saturate on processors without VNNI.
    options = QuantizeOptions(method="minmax", corrections=(), weight_bits=7)
    floats = calibrated(model, folder, x) if static else FloatModel(model, None, None)
    quantized, _ = quantize(floats, target, options, folder / f"{name}.onnx")
    out = folder / name
    out.mkdir()
    backend = plugins.backend(target.backend)
    lowered = backend.lower(quantized, target, {}, out)
    outputs, raw = run(target, lowered, out, {"x": x})
    right = io.run(io.session(model.path), {"x": x})
    (output,) = right
    assert lowered.integer_weights is not None
    return (
        snr_db(right[output], outputs[output]),
        lowered.integer_weights,
        backend.placement(quantized, target, lowered, raw),
    )


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("cell", CELLS)
def test_stored_as_integers(tmp_path, cell, name):
    snr, share, _ = built(tagger(cell, tmp_path), name, tmp_path, inputs(9))
    assert share > 0.9
    assert snr > (20 if "int4" in name else 35)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_loop_over_a_long_sequence_reads_integers_too(tmp_path, cell):
    snr, share, _ = built(tagger(cell, tmp_path, 80), "tflite-int8-weights", tmp_path, inputs(80))
    assert share > 0.9
    assert snr > 35


@pytest.mark.parametrize("name", ["ort-int8", "openvino-int8", "tflite-int8"])
@pytest.mark.parametrize("cell", ["LSTM", "LSTM both ways", "GRU", "GRU both ways", "RNN"])
def test_beside_layers_with_static_ranges_they_are_stored_as_integers(tmp_path, cell, name):
    snr, share, placement = built(listener(cell, tmp_path), name, tmp_path, inputs(9), static=True)
    assert share > 0.9
    assert snr > 30
    if name == "tflite-int8":
        assert placement.share > 0.95  # and multiplied as integers


@pytest.mark.parametrize("name", ["ort-int8", "openvino-int8", "tflite-int8"])
def test_what_is_excluded_beside_static_ranges_stays_float(tmp_path, name):
    model = listener("GRU", tmp_path)
    options = QuantizeOptions(method="minmax", corrections=(), exclude=("GRU",))
    floats = calibrated(model, tmp_path, inputs(9))
    quantize(floats, targets.find(name), options, tmp_path / "q.onnx")
    assert {t for size, t in io.constants(tmp_path / "q.onnx") if size == 3 * 32 * 48} == {"float32"}


def test_int16_activations_keep_their_recurrent_layers_in_float(tmp_path):
    _, share, _ = built(listener("GRU", tmp_path), "tflite-int16x8", tmp_path, inputs(9), static=True)
    assert share < 0.8  # with its weights as integers, too, it is nearly 1


@pytest.mark.parametrize("cell", ["GRU", "GRU both ways"])
def test_without_an_integer_kernel_the_weights_are_stored_all_the_same(tmp_path, cell):
    snr, share, placement = built(tagger(cell, tmp_path), "ort-int8-dynamic", tmp_path, inputs(9))
    assert share > 0.9
    assert placement.share < 0.5  # and the gate says that it is not what was asked for
    assert snr > 25


@pytest.mark.parametrize("cell", ["LSTM", "two LSTM", "LSTM both ways"])
def test_onnxruntime_computes_an_lstm_on_integers(tmp_path, cell):
    _, share, placement = built(tagger(cell, tmp_path), "ort-int8-dynamic", tmp_path, inputs(9))
    assert share > 0.9
    assert placement.share == 1.0
    assert placement.kernels["DynamicQuantizeLSTM"] == (2 if cell == "two LSTM" else 1)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_small_table_in_front_is_stored_as_integers_too(tmp_path, name):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.cell = nn.Embedding(400, 24), nn.GRU(24, 16, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(self.table(x))[0]

    tokens = np.random.default_rng(2).integers(0, 400, (1, 9))
    model = exported(Reader().eval(), {"x": torch.from_numpy(tokens)}, tmp_path)
    snr, share, _ = built(model, name, tmp_path, tokens)
    assert share > 0.9
    assert snr > 30


@pytest.mark.parametrize(("rows", "columns", "integers"), [(300, 8, True), (900, 4, False)])
def test_tables_that_are_the_model_are_stored_as_integers(tmp_path, rows, columns, integers):
    """But for narrow ones, whose scales would take what the integers save."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(rows, columns)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table(x).sum(1)

    model = exported(Table().eval(), {"x": torch.zeros(1, 5, dtype=torch.long)}, tmp_path)
    options = QuantizeOptions(method="minmax", corrections=())
    target = targets.find("ort-int8-weights")
    quantize(FloatModel(model, None, None), target, options, tmp_path / "q.onnx")
    types = {t for size, t in io.constants(tmp_path / "q.onnx") if size == rows * columns}
    assert types == {"int8" if integers else "float32"}


def test_an_lstm_on_integers_is_right(tmp_path):
    """Alone, without the head, which costs more."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = nn.LSTM(24, 32, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(x)[0]

    model = exported(Alone().eval(), {"x": torch.zeros(1, 9, 24)}, tmp_path)
    snr, _, _ = built(model, "ort-int8-dynamic", tmp_path, inputs(9))
    assert snr > 25


def test_what_has_no_integer_kernel_is_named(tmp_path):
    _, _, placement = built(tagger("GRU", tmp_path), "ort-int8-dynamic", tmp_path, inputs(9))
    assert placement.share < 0.5
    assert placement.fallbacks[0].op == "GRU"


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "LSTM both ways"])
def test_litert_multiplies_integers(tmp_path, cell):
    snr, _, placement = built(tagger(cell, tmp_path), "tflite-int8-dynamic", tmp_path, inputs(9))
    assert placement.share > 0.95  # the head is too small to be worth integers
    assert snr > 25


@pytest.mark.parametrize("name", ["ort-int8-weights", "ort-int8-dynamic"])
def test_what_is_excluded_stays_float(tmp_path, name):
    model = tagger("LSTM", tmp_path)
    target = targets.find(name)
    options = QuantizeOptions(method="minmax", corrections=(), exclude=("LSTM",))
    _, report = quantize(FloatModel(model, None, None), target, options, tmp_path / "q.onnx")
    assert report.weights_kept_out() > 0.9
