"""Damaged files of data: whatever bytes flip or are missing, the error is typed and names the file; no traceback."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edgekit.cli
from edgekit.artifact import golden, manifest
from edgekit.compress import plan
from edgekit.errors import DataError, EdgekitError, SourceError
from edgekit.load.array_files import read_npz
from edgekit.load.images import read_image
from edgekit.load.samples import open_samples
from edgekit.package import bundle, descriptor, writing
from edgekit.preprocess.declared import from_mapping
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.types import Sample, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8))
ROW = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
MUTANTS = 60


def mutants(data: bytes, seed: int) -> Iterator[bytes]:
    """Cut short, bits flipped, bytes overwritten, pieces repeated and removed; a few at the places where formats keep
    their lengths."""
    generator = random.Random(seed)
    yield b""
    yield data[: len(data) // 2]
    yield data[:-1]
    for _ in range(MUTANTS):
        changed = bytearray(data)
        for _ in range(generator.choice([1, 1, 2, 8])):
            at = generator.randrange(len(changed))
            match generator.randrange(5):
                case 0:
                    changed[at] ^= 1 << generator.randrange(8)
                case 1:
                    changed[at : at + 4] = struct.pack("<I", generator.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
                case 2:
                    del changed[at : at + generator.randrange(1, 9)]
                case 3:
                    changed[at:at] = changed[at : at + 16]
                case 4:
                    changed[at] = generator.choice(b"0(9,{[\"'<|\xff")
            if not changed:
                break
        yield bytes(changed)


def saved(save: Callable[..., None], **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, ROW)
    return buffer.getvalue()


def png() -> bytes:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("edgekit.json", b"{}" * 100)
        made.writestr("model/model.onnx", b"0123456789" * 50)
    return buffer.getvalue()


def read_data(path: Path) -> None:
    preprocessing = {"resize": [8, 8], "scale": 1.0}
    for sample in open_samples(str(path.parent), (X,), preprocessing=preprocessing):
        assert isinstance(sample, Sample)


def read_bundle(path: Path) -> None:
    with bundle.opened(path):
        pass


def read_processor(path: Path) -> None:
    from_mapping({"huggingface": str(path)})


JSON = b'{"schema": 1, "name": "a", "rows": [1, 2.5, {"deep": [[["x"]]]}], "text": "\\u00e9", "files": []}'
SURFACES = {
    "npz": ("row.npz", lambda: saved(np.savez, x=ROW, label=np.array(3)), read_data),
    "npz deflated": ("row.npz", lambda: saved(np.savez_compressed, x=ROW, label=np.array(3)), read_data),
    "npy": ("row.npy", npy, read_data),
    "image": ("a.png", png, read_data),
    "golden": (
        "golden.npz",
        lambda: saved(np.savez_compressed, **{"input/0/x": ROW, "output/0/y": ROW}),
        golden.read,
    ),
    "bundle": ("a.zip", archive, read_bundle),
    "manifest": ("manifest.json", lambda: JSON, manifest.read),
    "descriptor": ("edgekit.json", lambda: JSON, descriptor.read),
    "processor": ("preprocessor_config.json", lambda: JSON, read_processor),
    "plan": ("plan.json", lambda: JSON, lambda path: plan.read(path.parent)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("surface", SURFACES)
def test_damage_is_a_typed_error(surface: str, tmp_path: Path) -> None:
    name, make, read = SURFACES[surface]
    errors: list[EdgekitError] = []
    for data in mutants(make(), seed=len(surface)):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            read(path)
        except EdgekitError as error:
            errors.append(error)
    assert len(errors) > 3
    assert {error.exit_code for error in errors} <= {2, 3}
    assert all(error.hint for error in errors)


@pytest.mark.parametrize("name", ["row.npz", "row.npy"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not an array", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_the_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        read_data(tmp_path / name)
    assert str(tmp_path / name) in error.value.message


def test_an_archive_under_another_name_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "row.npy").write_bytes(saved(np.savez, x=ROW))
    with pytest.raises(DataError, match=r"row\.npy cannot be read"):
        read_data(tmp_path / "row.npy")


def test_terabytes_that_are_declared_are_not_there(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"
    for name in ("row.npy", "row.npz"):
        path = tmp_path / name
        if name.endswith("npz"):
            with zipfile.ZipFile(path, "w") as made:
                made.writestr("x.npy", header + b"\0" * 64)
        else:
            path.write_bytes(header + b"\0" * 64)
        with pytest.raises(DataError, match=name):
            read_data(path)
        path.unlink()


def test_what_unpacks_to_gigabytes_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "row.npz"
    path.write_bytes(saved(np.savez_compressed, x=ROW))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24  # the uncompressed size in the central directory
    data[at : at + 4] = struct.pack("<I", 0xF0000000)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="unpacks to"):
        read_data(path)


def test_arrays_that_are_gigabytes_of_nothing_together_are_refused(tmp_path):
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            with archive.open(f"k{number}.npy", "w") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (250 << 20,)}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(250):
                    file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="unpacks to"):
        read_npz(path)


def test_a_picture_of_a_hundred_million_pixels_in_a_few_kilobytes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "large.png"
    image.new("1", (12_000, 10_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="12000 x 10000 pixels"):
        read_image(path)


def test_a_calibration_in_a_type_that_numpy_lacks(tmp_path):
    head = {
        "x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        "__metadata__": {"edgekit": "{}"},
    }
    header = json.dumps(head).encode()
    path = tmp_path / "calibration.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(DataError, match="not a calibration"):
        Calibration.load(path)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    for name, read in (("manifest.json", manifest.read), ("edgekit.json", descriptor.read)):
        (tmp_path / name).write_bytes(b'{"a":' * 100_000)
        with pytest.raises(SourceError):
            read(tmp_path / name)


def test_a_file_that_ends_too_early_is_no_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(**_: object) -> int:
        raise edgekit.cli.click.Abort from EOFError("no data left")

    monkeypatch.setattr("edgekit.cli._ending.prepare", lambda: None)  # it is for a process of its own
    monkeypatch.setattr(edgekit.cli.cli, "main", end)
    with pytest.raises(SystemExit) as ended:
        edgekit.cli.main()
    assert ended.value.code == 1
    assert "interrupted" not in capsys.readouterr().err
    monkeypatch.setattr(edgekit.cli.cli, "main", lambda **_: (_ for _ in ()).throw(edgekit.cli.click.Abort()))
    with pytest.raises(SystemExit) as ended:
        edgekit.cli.main()
    assert ended.value.code == 130


def described(**changes: object) -> dict[str, object]:
    """A bundle's descriptor with one output and one test vector."""
    tensor = {"dtype": "float32", "shape": [1, 2]}
    case = {
        "name": "a",
        "inputs": [{"name": "x", "file": "x.bin", **tensor}],
        "outputs": [{"name": "y", "file": "y.bin", **tensor}],
    }
    document: dict[str, object] = {
        "schema": descriptor.SCHEMA_VERSION, "name": "com.example.a", "version": "1.0.0", "target": "ort-fp32",
        "backend": "onnxruntime", "precision": "fp32", "status": "passed", "runtime": {"name": "onnxruntime"},
        "files": ["model.onnx"], "model_sha256": "", "edgekit": "1", "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}], "golden": {"cases": [case | changes], "tolerance": {"cpu": 0.1}},
    }  # fmt: skip
    return document


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"outputs": [{"name": "z", "file": "y.bin", "dtype": "float32", "shape": [1, 2]}]}, "'z'"),
        ({"inputs": [{"name": "w", "file": "x.bin", "dtype": "float32", "shape": [1, 2]}]}, "'w'"),
        ({"label": "cat"}, "expects classes"),
        ({"inputs": [{"name": "x", "file": "a" * 1000, "dtype": "float32", "shape": [1, 2]}]}, "lacks a"),
    ],
)
def test_a_bundle_that_speaks_of_what_it_has_not_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    files = {"model.onnx": b"m", "x.bin": b"\0" * 8, "y.bin": b"\0" * 8}
    files[descriptor.FILE_NAME] = json.dumps(described(**change)).encode()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in files.items()]
    (tmp_path / writing.SUMS).write_text("\n".join(lines) + "\n")
    if not said:
        with bundle.opened(tmp_path) as read:
            assert read.descriptor.image_input is None
        return
    with pytest.raises(SourceError, match=said), bundle.opened(tmp_path):
        pass
