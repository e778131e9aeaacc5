"""What files claim and do not hold: refused before anything is built, allocated or unpacked by it."""

from __future__ import annotations

import json
import struct
import zipfile

import numpy as np
import pytest

from edgekit.artifact.manifest import refuse_unknown_types
from edgekit.core import toml
from edgekit.devices.agent import supervisor
from edgekit.errors import ConfigError, DataError, SourceError, UntrustedSourceError
from edgekit.load.array_files import read_npy, read_npz
from edgekit.load.huggingface_sizes import refuse_hollow
from edgekit.package import bundle
from edgekit.types import TensorSpec


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 3000, "a." * 60 + "a = 1", "x = " + "9" * 5000, "x = [1", "\0", "x = 1\nx = 2"]
)
def test_toml_that_is_none(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        toml.read(tmp_path / "a.toml")


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "a.toml"
    assert toml.rows({}, "target", path) == []
    assert toml.rows({"target": [{"name": "x"}]}, "target", path) == [{"name": "x"}]
    for value in (1, {"name": "x"}, [1], "x"):
        with pytest.raises(ConfigError, match="list of tables"):
            toml.rows({"target": value}, "target", path)


def record(shape, dtype="'<f4'", data=b"\0" * 48, version=1):
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header.encode() + data


CLAIMS = [
    record("(1000000000000,)"),
    record("(-1,)"),
    record("(True, 3)"),
    record("(3, 4)", "'<U0'"),  # numpy divides by it
    record("(3, 4)", "'|V0'"),
    record("(3, 4)", "'|O'"),
    record("(3, 4)", "[('a', '<f4')]"),
    record("(3, 4)", "()"),
    record("(3, 4)", "'x'"),
    record("(3, 4"),
    record("(3, 4)", version=9),
    record("(3, 5)"),
    b"",
]


@pytest.mark.parametrize("data", CLAIMS, ids=range(len(CLAIMS)))
def test_arrays_are_no_larger_than_their_bytes(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    for read, name in ((read_npy, "a.npy"), (read_npz, "a.npz")):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_arrays_that_are_whole(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 4), "f"), label=np.array(3), names=np.array(["a", "bc"]))
    np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    read = read_npz(tmp_path / "a.npz")
    assert {n: a.shape for n, a in read.items()} == {"x": (3, 4), "label": (), "names": (2,)}
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), np.arange(12.0).reshape(3, 4))
    (tmp_path / "empty.npy").write_bytes(record("(0, 4)", data=b""))
    assert read_npy(tmp_path / "empty.npy").shape == (0, 4)


@pytest.mark.parametrize("names", [[f"many/{i}" for i in range(2000)], [""], ["/x"], ["a\\b"]], ids=len)
def test_bundles_with_entries_that_none_has(tmp_path, names):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, b"")
    with pytest.raises(UntrustedSourceError), bundle.opened(path):
        pass


def weights(folder, **shapes):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def test_a_config_that_its_weights_cannot_fill(tmp_path):
    weights(tmp_path, embedding=[100, 8], layer=[8, 8], bias=[8])
    fitting = {
        "vocab_size": 100,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "eos_token_id": 10**9,
        "image_size": [32, 32],
    }
    refuse_hollow(tmp_path, fitting)
    for name, value in {
        "num_hidden_layers": 4,
        "n_layer": 2**31,
        "encoder_layers": 99,
        "vocab_size": 10**9,
        "d_model": 10**6,
        "num_labels": 2**31,
        "text_config": {"intermediate_size": 10**6},
        "image_size": [10**6, 8],
    }.items():
        with pytest.raises(SourceError, match="weights are 3 tensors"):
            refuse_hollow(tmp_path, fitting | {name: value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 9) + b"[" * 9,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 24) + b'{"x": {"shape":[1e999]}}',
    ],
)
def test_weights_that_are_damaged(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(SourceError, match=r"model\.safetensors is damaged"):
        refuse_hollow(tmp_path, {"hidden_size": 8})


def test_types_that_no_runtime_has():
    for dtype in ("float32", "int4", "bfloat16", "float8_e4m3fn", "bool", "uint8"):
        refuse_unknown_types([TensorSpec(name="x", dtype=dtype, shape=(1,))], "here")
    for dtype in ("float3", "", "int7", "f4,f4", "O", "object", "os.system"):
        with pytest.raises(SourceError, match="'x' the type"):
            refuse_unknown_types([TensorSpec(name="x", dtype=dtype, shape=(1,))], "here")


PLAN = {"tasks": [{"id": "a", "argv": ["x"], "job": {}, "timeout": 1}], "journal": "j", "heartbeat": 2}


def test_plans_that_are_none():
    assert supervisor.checked(PLAN) is PLAN
    task = PLAN["tasks"][0]
    wrong = [
        [], None, {}, {**PLAN, "heartbeat": "2"}, {**PLAN, "tasks": {}}, {**PLAN, "tasks": [1]}, {**PLAN, "lock": [1]},
        {**PLAN, "governor": 5}, {**PLAN, "state_s": "1"},
        *({**PLAN, "tasks": [{**task, "argv": a}]} for a in ([], [1], ["\0"], "x")),
    ]  # fmt: skip
    for plan in wrong:
        with pytest.raises(ValueError, match=r"no |missing"):
            supervisor.checked(plan)
