"""The .ekz container: bit-exact for anything, refused when damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import entropy
from edgekit.entropy import general, packing
from edgekit.entropy.container import MAGIC
from edgekit.entropy.wire import Reader, Writer
from edgekit.errors import ContainerError, SourceError, UnknownNameError, UsageError

NAMES = {
    "F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8, "I16": np.int16, "U16": np.uint16,
    "I32": np.int32,
}  # fmt: skip
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, body = {}, b""
    codes = {np.dtype(v): k for k, v in NAMES.items()}
    for name, a in tensors.items():
        begin = len(body)
        body += a.tobytes()
        header[name] = {"dtype": codes[a.dtype], "shape": list(a.shape), "data_offsets": [begin, len(body)]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sparse = rng.standard_normal((24, 40)).astype(np.float32)
    sparse[rng.random(sparse.shape) < 0.8] = 0
    book = np.sort(rng.standard_normal(8)).astype(np.float32)
    dense = rng.standard_normal((16, 3, 3, 3)).astype(np.float32)
    return {
        "sparse": sparse,
        "clustered": book[rng.integers(0, 8, (32, 20))],
        "dense": dense,
        "copy": dense.copy(),
        "int8": np.clip(rng.normal(0, 20, (16, 60)), -128, 127).astype(np.int8),
        "bias": rng.integers(-(2**31), 2**31 - 1, 64).astype(np.int32),
    }


@pytest.fixture(scope="module", params=entropy.CODERS)
def coder(request: pytest.FixtureRequest) -> str:
    if request.param == "zstd":
        pytest.importorskip("zstandard")
    return str(request.param)


@pytest.fixture(scope="module")
def packed(coder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("ekz")
    data = safetensors(weights())
    (folder / "m.safetensors").write_bytes(data)
    entropy.pack(folder / "m.safetensors", folder / "m.ekz", coder=coder)
    return folder / "m.ekz", data


def roundtrip(folder: Path, name: str, data: bytes, coder: str) -> int:
    source, out, back = folder / name, folder / "x.ekz", folder / "back"
    source.write_bytes(data)
    back.unlink(missing_ok=True)
    report = entropy.pack(source, out, coder=coder)
    entropy.unpack(out, back)
    assert back.read_bytes() == data
    return report.packed


def test_file_comes_back_bit_for_bit_and_smaller(
    packed: tuple[Path, bytes], coder: str, tmp_path: Path
) -> None:
    path, data = packed
    report = entropy.unpack(path, tmp_path / "out")
    assert report.path.read_bytes() == data
    assert report.size == len(data)
    assert report.mb_per_second > 0
    deflated = len(zlib.compress(data, 9))
    assert path.stat().st_size < (deflated if coder == "adaptive" else 1.1 * deflated)


def test_same_input_same_bytes(packed: tuple[Path, bytes], coder: str, tmp_path: Path) -> None:
    path, data = packed
    (tmp_path / "m.safetensors").write_bytes(data)
    entropy.pack(tmp_path / "m.safetensors", tmp_path / "again.ekz", coder=coder)
    assert (tmp_path / "again.ekz").read_bytes() == path.read_bytes()


def test_random_access_by_name(packed: tuple[Path, bytes]) -> None:
    with entropy.open(packed[0]) as c:
        assert set(c.names) == set(weights())
        for name, array in reversed(weights().items()):
            np.testing.assert_array_equal(c[name], array)
            assert c[name].dtype == array.dtype
        with pytest.raises(UnknownNameError) as caught:
            c["sparze"]
        assert "sparse" in caught.value.hint


def test_copies_are_stored_once(packed: tuple[Path, bytes]) -> None:
    with entropy.open(packed[0]) as c:
        forms = {t.name: t.form.name for t in c.index.tensors}
    assert sorted((forms["dense"], forms["copy"])) == ["COPY", "PLAIN"]
    assert forms["clustered"] == "CLUSTERED"


def test_directory(tmp_path: Path) -> None:
    source = tmp_path / "artifact"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "a.safetensors").write_bytes(safetensors(weights()))
    (source / "deep" / "er" / "manifest.json").write_text('{"a": 1}')
    (source / "empty").write_bytes(b"")
    entropy.pack(source, tmp_path / "a.ekz")
    out = entropy.unpack(tmp_path / "a.ekz", tmp_path / "out").path
    files = {p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    with pytest.raises(UsageError):
        entropy.unpack(tmp_path / "a.ekz", tmp_path / "out")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "l").symlink_to("/etc/hostname")
    with pytest.raises(SourceError, match="link"):
        entropy.pack(tmp_path / "d", tmp_path / "x.ekz")


def test_openvino_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    w = np.clip(rng.normal(0, 9, (64, 64)), -127, 127).astype(np.int8)
    d = tmp_path / "m"
    d.mkdir()
    (d / "m.bin").write_bytes(bytes(16) + w.tobytes())
    (d / "m.xml").write_text(
        '<net><layer id="0" name="w0" type="Const" version="opset1">\n'
        '<data element_type="i8" shape="64, 64" offset="16" size="4096" /></layer></net>'
    )
    entropy.pack(d, tmp_path / "m.ekz")
    with entropy.open(tmp_path / "m.ekz") as c:
        np.testing.assert_array_equal(c["w0"], w)


@quick
@given(
    st.sampled_from(sorted(NAMES)),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=64),
    st.integers(0, 2**32 - 1),
)
def test_any_bit_pattern_survives(
    tmp_path: Path, coder: str, dtype: str, shape: list[int], few: bytes, seed: int
) -> None:
    """NaNs, subnormals, negative zeros, extremes: patterns drawn from a few bytes or from all."""
    kind = np.dtype(NAMES[dtype])
    size = int(np.prod(shape)) * kind.itemsize
    rng = np.random.default_rng(seed)
    pool = np.frombuffer(few, np.uint8) if seed % 2 else np.arange(256, dtype=np.uint8)
    data = rng.choice(pool, size).astype(np.uint8).tobytes()
    roundtrip(tmp_path, "m.safetensors", safetensors({"w": np.frombuffer(data, kind).reshape(shape)}), coder)


@quick
@given(
    st.binary(max_size=400), st.sampled_from(["a.onnx", "a.tflite", "a.net", "a.safetensors", "a.xml", "a"])
)
def test_any_bytes_under_any_name_survive(tmp_path: Path, coder: str, data: bytes, name: str) -> None:
    roundtrip(tmp_path, name, data, coder)


@quick
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_is_refused(packed: tuple[Path, bytes], tmp_path: Path, at: int, bit: int) -> None:
    data = bytearray(packed[0].read_bytes())
    data[at % len(data)] ^= 1 << bit
    (tmp_path / "bad.ekz").write_bytes(data)
    with pytest.raises(ContainerError):
        entropy.unpack(tmp_path / "bad.ekz", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ekz"]


@quick
@given(st.integers(0, 10**6))
def test_truncation_is_refused(packed: tuple[Path, bytes], tmp_path: Path, size: int) -> None:
    data = packed[0].read_bytes()
    (tmp_path / "bad.ekz").write_bytes(data[: size % len(data)])
    with pytest.raises(ContainerError):
        entropy.unpack(tmp_path / "bad.ekz", tmp_path / "out")


def test_a_tail_is_refused(packed: tuple[Path, bytes], tmp_path: Path) -> None:
    (tmp_path / "bad.ekz").write_bytes(packed[0].read_bytes() + b"\0")
    with pytest.raises(ContainerError):
        entropy.open(tmp_path / "bad.ekz")


def reseal(data: bytes, change: dict[int, int]) -> bytes:
    """The container with bytes of its index and blocks changed, and every checksum made right again."""
    r = Reader(data)
    r.take(4)
    codec, size, raw, index = (r.uint() for _ in range(4))
    r.take(4)
    first = bytearray(general.decode(codec, r.take(size), raw))
    for at, value in change.items():
        first[at % len(first)] = value
    w = Writer()
    w.data += MAGIC
    for value in (0, len(first), len(first), index):
        w.uint(value)
    w.data += zlib.crc32(bytes(first)).to_bytes(4, "little")
    return bytes(w.data) + bytes(first) + bytes(r.take(r.left))


def test_reseal_itself_is_harmless(packed: tuple[Path, bytes], tmp_path: Path) -> None:
    (tmp_path / "x.ekz").write_bytes(reseal(packed[0].read_bytes(), {}))
    assert entropy.unpack(tmp_path / "x.ekz", tmp_path / "out").path.read_bytes() == packed[1]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.integers(0, 10**6), st.integers(0, 255), min_size=1, max_size=4))
def test_a_hostile_index_is_refused(
    packed: tuple[Path, bytes], tmp_path: Path, change: dict[int, int]
) -> None:
    """Right checksums, wrong contents: a typed error or the same bytes, and nothing outside the folder."""
    (tmp_path / "bad.ekz").write_bytes(reseal(packed[0].read_bytes(), change))
    try:
        out = entropy.unpack(tmp_path / "bad.ekz", tmp_path / "out").path
    except ContainerError:
        assert [p.name for p in tmp_path.iterdir()] == ["bad.ekz"]
    else:  # names and the kind of the container are not covered by a digest: the contents are
        file = out if out.is_file() else next(p for p in out.rglob("*") if p.is_file())
        assert file.read_bytes() == packed[1]
        out.unlink() if out.is_file() else shutil.rmtree(out)


@quick
@given(st.binary(max_size=200))
def test_noise_after_the_magic_is_refused(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "bad.ekz").write_bytes(MAGIC + noise)
    with pytest.raises(ContainerError):
        entropy.open(tmp_path / "bad.ekz")


def hostile(path_in_archive: str, declared: int) -> bytes:
    """A container of one file with no tensor and no data."""
    w = Writer()
    w.uint(1)
    w.uint(1)
    w.text(path_in_archive)
    w.uint(declared)
    w.data += bytes(16)
    for _ in range(3):
        w.uint(0)
    return seal(bytes(w.data))


def seal(index: bytes) -> bytes:
    head = Writer()
    head.data += MAGIC
    for value in (0, len(index), len(index), len(index)):
        head.uint(value)
    return bytes(head.data) + zlib.crc32(index).to_bytes(4, "little") + index


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "C:x", "a\\b", "", ".", "a//b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.ekz").write_bytes(hostile(name, 0))
    with pytest.raises(ContainerError, match="leave its folder"):
        entropy.open(tmp_path / "bad.ekz")


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    w = Writer()
    w.uint(0)
    w.uint(2)
    for name in ("a", "a/b"):
        w.text(name)
        w.uint(0)
        w.data += hashlib.sha256(b"").digest()[:16]
        w.uint(0)
    w.uint(0)
    w.uint(0)
    (tmp_path / "bad.ekz").write_bytes(seal(bytes(w.data)))
    with pytest.raises(ContainerError, match="folder"):
        entropy.unpack(tmp_path / "bad.ekz", tmp_path / "out")


def test_declared_sizes_allocate_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.ekz").write_bytes(hostile("x", 1 << 40))
    tracemalloc.start()
    with pytest.raises(ContainerError):
        entropy.open(tmp_path / "bad.ekz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_output_limit(packed: tuple[Path, bytes], tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="limit"):
        entropy.unpack(packed[0], tmp_path / "out", max_output=1000)


def test_zstd_pair(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    data = b"the same words again and again " * 4000
    codec, coded = general.encode(data, (general.Codec.ZSTD,))
    assert codec is general.Codec.ZSTD
    assert general.decode(codec, coded, len(data)) == data
    with pytest.raises(ContainerError):
        general.decode(codec, coded, len(data) - 1)


def test_the_coders_that_are_offered_are_those_that_there_are(tmp_path: Path) -> None:
    assert tuple(packing.CODERS) == entropy.CODERS
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(UnknownNameError, match="huffmann"):
        entropy.pack(tmp_path / "a", tmp_path / "x.ekz", coder="huffmann")


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        entropy.pack(tmp_path / "nothing", tmp_path / "x.ekz")
    with pytest.raises(SourceError):
        entropy.unpack(tmp_path / "nothing", tmp_path / "x")


def test_packing_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    source, blocked = tmp_path / "weights.bin", tmp_path / "file"
    source.write_bytes(bytes(range(256)) * 8)
    blocked.write_text("a file where a folder is wanted")
    with pytest.raises(UsageError, match="cannot write"):
        entropy.pack(source, blocked / "weights.ekz")
    made = entropy.pack(source, tmp_path / "new" / "folder" / "weights.ekz")
    assert made.path.is_file()
    assert sorted(p.name for p in made.path.parent.iterdir()) == ["weights.ekz"]
