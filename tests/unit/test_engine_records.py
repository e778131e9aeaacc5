"""What an engine was built from and for: every difference is found, and none is invented."""

import json
from dataclasses import replace

import pytest

from edgekit.backends import own_engines
from edgekit.backends.base import EngineHost
from edgekit.backends.nvidia import flags, request
from edgekit.backends.nvidia.engine import EngineKey, read_key, refuse_mismatch, write_record
from edgekit.backends.nvidia.recipe import Recipe, build_argv, by_hand, read_recipe
from edgekit.errors import (
    EngineMismatchError,
    SourceError,
    UnsupportedError,
    UntrustedEngineError,
    UsageError,
)

KEY = EngineKey(
    graph_sha256="ab" * 32,
    runtime="tensorrt",
    version="10.3.0",
    gpu="Orin",
    compute_capabilities=("8.7",),
    driver="R36.4.0 540.4.0",
    flags={"typing": "weak"},
)
HOST = EngineHost(gpu="Orin", compute_capability="8.7", version="10.3.0", driver="R36.4.0", dla_cores=2)


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(bytes(range(256)) * 4)
    write_record(path, KEY)
    return path


def test_it_reads_as_it_was_written(engine):
    assert read_key(engine) == KEY
    refuse_mismatch(engine, KEY, where="here")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"gpu": "Orin Nano"}, "the GPU Orin"),
        ({"compute_capabilities": ("8.6",)}, "compute capability 8.7"),
        ({"version": "10.3.1"}, "the version 10.3.0"),
        ({"driver": "R36.5.0"}, "the driver R36.4.0"),
        ({"runtime": "tensorrt_rtx"}, "the runtime tensorrt"),
        ({"graph_sha256": "cd" * 32}, "another graph"),
    ],
)
def test_each_thing_that_does_not_fit_is_named(engine, changes, word):
    with pytest.raises(EngineMismatchError, match=word) as caught:
        refuse_mismatch(engine, replace(KEY, **changes), where="jetson")
    assert len(caught.value.differences) == 1
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("mine", "theirs"), [("", "R36.5.0"), ("R36.4.0", "")])
def test_a_driver_that_one_side_does_not_tell_is_said_in_words(engine, mine, theirs):
    write_record(engine, replace(KEY, driver=mine))
    with pytest.raises(EngineMismatchError) as caught:
        refuse_mismatch(engine, replace(KEY, driver=theirs), where="jetson")
    (words,) = caught.value.differences
    assert "driver" in words
    assert words == words.strip()
    assert "  " not in words
    assert " ," not in words


def test_every_flipped_byte_and_every_length_is_seen(engine):
    whole = engine.read_bytes()
    for index in range(0, len(whole), 37):
        engine.write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
        with pytest.raises(EngineMismatchError, match="altered"):
            read_key(engine)
        engine.write_bytes(whole[:index])
        with pytest.raises(EngineMismatchError, match="bytes"):
            read_key(engine)


@pytest.mark.parametrize("record", [b"", b"{", b"[1]", b'{"schema":1}', b"\xff\xfe", b"{}" * 9])
def test_a_damaged_record_is_none(engine, record):
    engine.with_name("engine.json").write_bytes(record)
    with pytest.raises(EngineMismatchError, match="missing or damaged"):
        read_key(engine)


def test_an_engine_for_many_gpus_fits_each_of_them():
    rtx = EngineKey(
        graph_sha256="a", runtime="tensorrt_rtx", version="1.7", compute_capabilities=("8.6", "8.9")
    )
    wanted = replace(rtx, gpu="NVIDIA L4", driver="590", compute_capabilities=("8.9",))
    assert rtx.differences(wanted) == ()
    assert len(rtx.differences(replace(wanted, compute_capabilities=("7.5",)))) == 1
    assert replace(rtx, compute_capabilities=()).differences(wanted) == ()


def test_the_key_changes_with_each_part_of_it():
    parts = [
        {"gpu": "x"},
        {"version": "x"},
        {"driver": "x"},
        {"graph_sha256": "x"},
        {"flags": {}},
        {"runtime": "x"},
    ]
    assert len({replace(KEY, **p).digest for p in parts} | {KEY.digest}) == len(parts) + 1


def test_only_what_was_built_here_is_trusted(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UntrustedEngineError, match="was not built here"):
        own_engines.refuse_others(engine, trust=False)
    own_engines.refuse_others(engine, trust=True)
    own_engines.remember(engine)
    own_engines.refuse_others(engine, trust=False)
    engine.write_bytes(engine.read_bytes() + b"x")
    with pytest.raises(UntrustedEngineError):
        own_engines.refuse_others(engine, trust=False)


def test_one_of_ours_beside_somebodys_graph_is_not_trusted(engine, tmp_path, monkeypatch):
    """Whoever has one of our engines may say of another graph that it was built of it."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    own_engines.remember(engine)
    record = json.loads(engine.with_name("engine.json").read_text())
    engine.with_name("engine.json").write_text(json.dumps({**record, "graph_sha256": "cd" * 32}))
    with pytest.raises(UntrustedEngineError):
        own_engines.refuse_others(engine, trust=False)
    engine.with_name("engine.json").write_text(json.dumps(record))
    own_engines.refuse_others(engine, trust=False)


@pytest.mark.parametrize(
    ("precision", "asked", "version", "found"),
    [
        ("int8", "auto", "8.5.2", "weak"),
        ("fp16", "auto", "8.6.2", "weak"),
        ("int8", "auto", "10.3.0", "weak"),
        ("fp16", "auto", "10.3.0", "strong"),
        ("int8", "strong", "10.13.3", "strong"),
        ("int8", "auto", "11.0.0", "strong"),
    ],
)
def test_weak_typing_where_it_is_known_and_helps(precision, asked, version, found):
    assert flags.typing_of(Recipe(precision=precision, typing=asked), version) == found


@pytest.mark.parametrize(("asked", "version"), [("weak", "11.0.0"), ("strong", "8.6.2")])
def test_typing_that_a_release_does_not_have_is_refused(asked, version):
    with pytest.raises(UsageError):
        flags.typing_of(Recipe(precision="fp16", typing=asked), version)


def test_what_the_device_lacks_is_refused():
    for recipe, host in (
        (Recipe(precision="fp8"), HOST),
        (Recipe(precision="bf16"), replace(HOST, version="8.6.2")),
        (Recipe(precision="int8", dla=2), HOST),
        (Recipe(precision="int8", dla=0), replace(HOST, dla_cores=0)),
    ):
        with pytest.raises(UnsupportedError):
            request.refuse(recipe, host)
    request.refuse(Recipe(precision="int8", dla=1), HOST)
    request.refuse(Recipe(precision="fp8"), replace(HOST, compute_capability="8.9"))


def test_layers_that_leave_float16_stay_out_of_it_by_trtexec():
    recipe = Recipe(precision="int8", float32=("exp", "sum"))
    assert "--layerPrecisions={0.x}:fp32" in build_argv(
        Recipe(precision="int8", float32=("{0.x}",)), "weak", ["int8"], (10, 3)
    )
    argv = build_argv(recipe, "weak", ["int8", "fp16"], (10, 3))
    assert "--precisionConstraints=obey" in argv
    assert "--layerPrecisions=exp:fp32,sum:fp32" in argv


def test_by_hand_nothing_stands_for_something():
    argv = by_hand(Recipe(precision="fp16", profiles={"x": ((1, 3), (2, 3), (4, 3))}))
    assert not any("{" in argument for argument in argv)
    assert "--minShapes={0.x}:1" in by_hand(Recipe(precision="fp16", profiles={"{0.x}": ((1,), (1,), (2,))}))
    assert "--minShapes=x:1x3" in argv


@pytest.mark.parametrize("text", ["", "{}", '{"precision": "int4"}', '{"precision": "int8", "minutes": 0}'])
def test_a_damaged_recipe_is_the_artifacts_fault(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(SourceError, match="does not say how to build"):
        read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    "blank",
    [
        {"gpu": ""},
        {"version": ""},
        {"runtime": ""},
        {"driver": ""},
        {"compute_capabilities": []},
        {"gpu": "", "version": "", "driver": "", "runtime": "", "compute_capabilities": []},
    ],
)
def test_a_record_with_blanks_fits_nothing(tmp_path, blank):
    import json

    from edgekit.backends.nvidia.engine import RECORD, EngineKey, refuse_mismatch, write_record
    from edgekit.errors import EngineMismatchError

    key = EngineKey(
        graph_sha256="0" * 64,
        runtime="tensorrt",
        version="10.3.0",
        gpu="Orin",
        compute_capabilities=("8.7",),
        driver="540.4.0",
    )
    (tmp_path / "model.engine").write_bytes(b"engine")
    write_record(tmp_path / "model.engine", key)
    refuse_mismatch(tmp_path / "model.engine", key, where="jetson")
    path = tmp_path / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | blank))
    with pytest.raises(EngineMismatchError):
        refuse_mismatch(tmp_path / "model.engine", key, where="jetson")
