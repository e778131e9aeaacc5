"""The integers of a GGUF file, taken over without rounding them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="GGUF files need the extra genai")

import gguf
import torch

from edgekit.errors import SourceError
from edgekit.quantize import gguf_blocks

TYPES = ("Q8_0", "Q4_0", "Q4_1")


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order that files of the Llama family have rows of queries and keys in."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def written(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A file with these tensors; what each is, widened."""
    writer = gguf.GGUFWriter(path, "llama")
    widened = {}
    for name, (kind, array) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(array, number)
        writer.add_tensor(name, data, raw_dtype=number)
        widened[name] = gguf.quants.dequantize(data, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return widened


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_the_files_own(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {n: (kind, random.normal(size=(48, 64)).astype(np.float32)) for n in ("a", "b")}
    widened = written(tmp_path / "x.gguf", arrays)
    # Two of one shape, asked for in the other order: the numbers tell which is which.
    found = gguf_blocks.read(tmp_path / "x.gguf", {n: torch.from_numpy(widened[n]) for n in ("b", "a")})
    for name in arrays:
        assert np.allclose(found[name].widened(), widened[name], rtol=1e-6, atol=1e-7)
        assert found[name].bits == (8 if kind == "Q8_0" else 4)
        assert (found[name].offsets is not None) == (kind == "Q4_1")


def test_rows_are_put_in_the_models_order(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).normal(size=(128, 64)).astype(np.float32)
    widened = written(tmp_path / "x.gguf", {"q": ("Q4_1", interleaved(weight, heads=2))})["q"]
    back = widened.reshape(2, 32, 2, 64).swapaxes(1, 2).reshape(128, 64)
    found = gguf_blocks.read(tmp_path / "x.gguf", {"q": torch.from_numpy(np.ascontiguousarray(back))})
    assert np.allclose(found["q"].widened(), back, rtol=1e-6, atol=1e-7)


def test_what_the_numbers_do_not_show_is_left_to_be_rounded(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    weight = random.normal(size=(32, 64)).astype(np.float32)
    written(tmp_path / "x.gguf", {"a": ("Q8_0", weight), "b": ("F16", weight)})
    other = torch.from_numpy(random.normal(size=(32, 64)).astype(np.float32))
    assert gguf_blocks.read(tmp_path / "x.gguf", {"a": other}) == {}


def test_a_damaged_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(SourceError, match=r"x\.gguf cannot be read"):
        gguf_blocks.read(tmp_path / "x.gguf", {"a": torch.zeros(32, 32)})
