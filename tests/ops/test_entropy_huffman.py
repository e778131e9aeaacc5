"""Huffman codes: every symbol comes back, lengths are limited, and what is no code is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import entropy
from edgekit.entropy import general, groups, huffman
from edgekit.entropy.coding import MAX_ELEMENTS, Family, Part
from edgekit.entropy.groups import GroupCodec
from edgekit.entropy.wire import Writer
from edgekit.errors import ContainerError

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(st.integers(1, 3000), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_symbols_come_back(count: int, alphabet: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    symbols = np.minimum(rng.geometric(rng.uniform(0.01, 0.99), count) - 1, alphabet - 1)
    coded = huffman.encode(symbols, alphabet)
    np.testing.assert_array_equal(huffman.decode(coded, count, alphabet), symbols)


def test_a_code_is_within_a_bit_of_the_entropy_and_prefix_free() -> None:
    histogram = np.array([50, 20, 12, 9, 5, 3, 1])
    lengths = huffman.code_lengths(histogram)
    p = histogram / histogram.sum()
    bits = -(p * np.log2(p)).sum()
    assert bits <= (p * lengths).sum() < bits + 0.1
    assert (2.0**-lengths).sum() == 1


def test_long_codes_are_cut_to_the_limit() -> None:
    lengths = huffman.code_lengths(np.array([1 << min(i, 40) for i in range(60)]))
    assert lengths.max() == huffman.LIMIT
    assert (2.0**-lengths).sum() <= 1
    assert np.all(np.diff(lengths) <= 0)


@quick
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_gives_symbols_or_a_typed_error(at: int, bit: int) -> None:
    """The container's checksums come before; this is what is left when they were made right again."""
    symbols = np.random.default_rng(0).geometric(0.3, 2000) % 40
    coded = bytearray(huffman.encode(symbols, 40))
    coded[at % len(coded)] ^= 1 << bit
    try:
        out = huffman.decode(bytes(coded), 2000, 40)
    except ContainerError:
        return
    assert out.shape == (2000,)
    assert 0 <= out.min() <= out.max() < 40


@quick
@given(st.integers(0, 10**6))
def test_a_cut_stream_is_refused(size: int) -> None:
    coded = huffman.encode(np.random.default_rng(0).geometric(0.3, 2000) % 40, 40)
    with pytest.raises(ContainerError):
        huffman.decode(coded[: size % len(coded)], 2000, 40)


@quick
@given(st.binary(max_size=200), st.sampled_from([GroupCodec.HUFFMAN, GroupCodec.ZSTD]), st.integers(1, 5000))
def test_noise_is_refused_or_bounded(noise: bytes, codec: GroupCodec, elements: int) -> None:
    pytest.importorskip("zstandard")
    try:
        magnitude, negative = groups.decode(codec, noise, elements)
    except ContainerError:
        return
    assert len(magnitude) == len(negative) == elements


def test_more_symbols_than_bits_cost_nothing() -> None:
    w = Writer()
    w.uint(16 * 1 + 1)  # two symbols of one bit
    w.uint(1)
    w.uint(4)
    data = bytes(w.data) + bytes(4)
    tracemalloc.start()
    with pytest.raises(ContainerError, match="shorter"):
        huffman.decode(data, MAX_ELEMENTS, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_zstd_plane_of_another_size_is_refused() -> None:
    zstandard = pytest.importorskip("zstandard")
    w = Writer()
    w.uint(1)
    w.uint(general.Codec.ZSTD)
    w.blob(zstandard.compress(bytes(1 << 24)))
    tracemalloc.start()
    with pytest.raises(ContainerError):
        groups.decode(GroupCodec.ZSTD, bytes(w.data), 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ContainerError, match="number 9"):
        groups.decode(9, b"", 1)


@pytest.mark.parametrize("codec", list(GroupCodec))
def test_groups_of_every_code(codec: GroupCodec) -> None:
    pytest.importorskip("zstandard")
    rng = np.random.default_rng(3)
    numbers = np.rint(rng.normal(0, 300, 4000)).astype(np.int64)
    floats = rng.normal(0, 1, 3000).astype(np.float32).view(np.uint32).astype(np.int64)
    for family, mantissa, magnitude, negative in (
        (Family.INTEGER, 0, np.abs(numbers), (numbers < 0).astype(np.int64)),
        (Family.FLOAT, 23, floats & 0x7FFFFFFF, floats >> 31),
    ):
        part = Part(magnitude=magnitude, negative=negative, rows=10)
        data = groups.encode(codec, [part], family, mantissa, spread=1.0)
        back = groups.decode(codec, data, len(magnitude))
        np.testing.assert_array_equal(back[0], magnitude)
        np.testing.assert_array_equal(back[1], negative)


def test_decoding_needs_neither_zstandard_nor_torch(tmp_path: Path) -> None:
    """The decoder in a process in which nothing but the standard library and numpy can be imported."""
    body = np.random.default_rng(0).normal(0, 9, (64, 64)).astype("<f4").tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, len(body)]}}).encode()
    raw = len(header).to_bytes(8, "little") + header + body
    (tmp_path / "w.safetensors").write_bytes(raw)
    program = (
        "import sys\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        root = name.partition('.')[0]\n"
        "        if root not in sys.stdlib_module_names and root not in ('numpy', 'edgekit'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "from pathlib import Path\n"
        "from edgekit import entropy\n"
        "entropy.unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    for coder in ("adaptive", "huffman"):
        assert entropy.pack(tmp_path / "w.safetensors", tmp_path / "w.ekz", coder=coder).tensors == 1
        out = tmp_path / f"{coder}.safetensors"
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "w.ekz"), str(out)], check=True)
        assert out.read_bytes() == raw
