"""The preprocessing contract against Pillow, against hand-computed values, and against bad input."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ConfigError, DataError, UnknownNameError
from edgekit.preprocess import resample
from edgekit.preprocess.contract import Preprocessing, bound
from edgekit.preprocess.declared import completed, fitting, from_mapping
from edgekit.types import TensorSpec

PIL_FILTERS = {"box": 4, "bilinear": 2, "bicubic": 3}
SIDE = st.integers(1, 40)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=60)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(sorted(PIL_FILTERS)))
def test_resize_is_pillows_bit_for_bit(height: int, width: int, to_h: int, to_w: int, name: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = noise(height, width, seed=height * 41 + width)
    ours = resample.resize(image, to_h, to_w, filter=name, antialias=True)
    # One axis at a time: Pillow 13 runs the vertical pass first where that is quicker.
    pillow = image_module.fromarray(image).resize((to_w, height), PIL_FILTERS[name])
    assert np.array_equal(ours, np.asarray(pillow.resize((to_w, to_h), PIL_FILTERS[name])))


def test_without_antialiasing_only_neighbours_count() -> None:
    row = np.zeros((1, 8, 3), np.uint8)
    row[0, 3:5] = 200
    assert resample.resize(row, 1, 2, filter="bilinear", antialias=False)[0, :, 0].tolist() == [0, 0]
    assert resample.resize(row, 1, 2, filter="bilinear", antialias=True)[0, :, 0].min() > 0


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    image = np.arange(5, dtype=np.uint8).reshape(1, 5, 1)
    assert resample.resize(image, 1, 3, filter="nearest", antialias=True)[0, :, 0].tolist() == [0, 2, 4]


def test_gray_is_pillows() -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = noise(9, 7)
    contract = Preprocessing(resize=(9, 7), color="gray")
    assert np.array_equal(
        contract.fit_image(image)[..., 0], np.asarray(image_module.fromarray(image).convert("L"))
    )


def test_normalisation_is_computed_in_double_and_rounded_once() -> None:
    contract = Preprocessing(resize=(1, 1), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    fed = contract.apply(np.array([[[10, 20, 30]]], np.uint8))
    want = [(v / 255 - m) / s for v, m, s in zip((10, 20, 30), contract.mean, contract.std, strict=True)]
    assert fed.dtype == np.float32
    assert fed.ravel().tolist() == np.array(want, np.float32).tolist()


def test_color_order_layout_and_per_channel_values_go_together() -> None:
    image = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    contract = Preprocessing(resize=(1, 2), color="bgr", scale=1.0, mean=(1.0, 2.0, 3.0))
    assert contract.apply(image).tolist() == [[[[29, 59]], [[18, 48]], [[7, 37]]]]
    nhwc = Preprocessing(resize=(1, 2), color="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), layout="NHWC")
    assert np.array_equal(nhwc.apply(image), contract.apply(image).transpose(0, 2, 3, 1))


def test_quantized_input_rounds_half_to_even_and_saturates() -> None:
    spec = TensorSpec(name="x", dtype="int8", shape=(1, 1, 1, 3), scale=2.0, zero_point=-3)
    contract = Preprocessing(resize=(1, 1), scale=1.0, layout="NHWC", dtype="int8")
    fed = contract.apply(np.array([[[3, 5, 255]]], np.uint8), spec)
    assert fed.dtype == np.int8
    assert fed.ravel().tolist() == [2 - 3, 2 - 3, 128 - 3]  # 1.5 and 2.5 both become 2
    brighter = TensorSpec(name="x", dtype="int8", shape=(1, 1, 1, 3), scale=1.0, zero_point=0)
    assert contract.apply(np.array([[[3, 5, 255]]], np.uint8), brighter).ravel().tolist() == [3, 5, 127]


def test_shortest_edge_rounds_down_and_the_crop_is_central() -> None:
    image = noise(10, 17)
    contract = Preprocessing(resize=8, crop=(6, 6), scale=1.0, filter="nearest")
    scaled = resample.resize(image, 8, 13, filter="nearest", antialias=True)
    assert np.array_equal(contract.fit_image(image), scaled[1:7, 3:9])
    even = Preprocessing(resize=8, crop=(6, 6), scale=1.0, filter="nearest", crop_rounding="half-even")
    assert np.array_equal(even.fit_image(image), scaled[1:7, 4:10])  # 3.5 goes to 4


def test_padding_keeps_the_aspect_ratio() -> None:
    image = np.full((10, 20, 3), 255, np.uint8)
    fitted = Preprocessing(resize=(8, 8), fit="pad", pad_value=7).fit_image(image)
    assert (fitted[2:6] == 255).all()
    assert (fitted[:2] == 7).all()
    assert (fitted[6:] == 7).all()


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_a_fed_tensor_can_be_turned_back_into_its_image(color: str) -> None:
    contract = Preprocessing(
        resize=20, crop=(17, 16), color=color, mean=(0.4,), std=(0.2,), crop_rounding="half-even"
    )
    fed = contract.apply(noise(31, 24))
    image = contract.invert(fed)
    assert image is not None
    assert np.array_equal(contract.apply(image), fed)
    assert contract.invert(fed + np.float32(1e-3)) is None
    assert contract.invert(fed[:, :, :-1]) is None


def test_what_is_left_after_folding_takes_pixels() -> None:
    contract = Preprocessing(resize=(4, 4), color="bgr", mean=(0.5,), std=(0.5,))
    left = contract.folded("image")
    assert left.is_folded
    assert not contract.is_folded
    image = noise(4, 4)
    assert np.array_equal(left.apply(image)[0], image)


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"resize": [4, 4], "filter": "lanczos"}, "lanczos"),
        ({"resize": [4, 4], "layout": "HWC"}, "HWC"),
        ({"resize": 4}, "shortest"),
        ({}, None),
        ({"scale": 1.0}, "size is unknown"),
        ({"resize": [4, 4], "crop": [5, 4]}, "larger"),
        ({"resize": [4, 4], "mean": [0.1, 0.2]}, "2 values"),
        ({"resize": [4, 4], "std": [0.0]}, "must not be 0"),
        ({"resize": [0, 4]}, "positive"),
        ({"resize": [4, 4], "pad_value": 300}, "byte"),
    ],
)
def test_impossible_contracts_say_what_is_wrong(mapping: dict[str, object], named: str | None) -> None:
    if named is None:
        assert from_mapping(mapping) is None
        return
    with pytest.raises(ConfigError, match=named):
        from_mapping(mapping)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as raised:
        from_mapping({"resize": [4, 4], "colour": "rgb"})
    assert "color" in raised.value.hint


def test_round_trip_through_json() -> None:
    contract = Preprocessing(resize=256, crop=(224, 224), color="bgr", mean=(0.1, 0.2, 0.3))
    assert from_mapping(json.loads(json.dumps(contract.to_mapping()))) == contract


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), noise(3, 9)])
def test_images_that_cannot_be_taken(image: np.ndarray) -> None:
    with pytest.raises(DataError):
        Preprocessing(crop=(4, 4)).apply(image)


def test_hugging_face_processor(tmp_path) -> None:
    vit = {
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "BitImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(vit))
    contract = from_mapping({"huggingface": "."}, base=tmp_path)
    assert contract == Preprocessing(
        resize=256, filter="bicubic", crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    overridden = from_mapping({"huggingface": ".", "layout": "NHWC"}, base=tmp_path)
    assert overridden is not None
    assert overridden.layout == "NHWC"


def test_hugging_face_variants(tmp_path) -> None:
    def read(**config: object) -> Preprocessing:
        (tmp_path / "p.json").write_text(json.dumps(config))
        found = from_mapping({"huggingface": "p.json"}, base=tmp_path)
        assert found is not None
        return found

    convnext = read(size={"shortest_edge": 224}, crop_pct=0.875, do_normalize=False)
    assert (convnext.resize, convnext.crop) == (256, (224, 224))
    mobilevit = read(size={"height": 256, "width": 256}, do_flip_channel_order=True, do_normalize=False)
    assert (mobilevit.color, mobilevit.size) == ("bgr", (256, 256))
    shifted = read(size=8, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False)
    assert shifted.apply(np.zeros((8, 8, 3), np.uint8)).max() == -1
    with pytest.raises(ConfigError, match="longest"):
        read(size={"shortest_edge": 800, "longest_edge": 1333})
    with pytest.raises(ConfigError, match="resamples"):
        read(size={"height": 8, "width": 8}, resample=1)


def test_timm_config(tmp_path) -> None:
    config = {
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        }
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    contract = from_mapping({"timm": "."}, base=tmp_path)
    assert contract is not None
    assert (contract.resize, contract.crop, contract.crop_rounding) == (248, (224, 224), "half-even")
    config["pretrained_cfg"]["crop_mode"] = "border"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="border"):
        from_mapping({"timm": "."}, base=tmp_path)


def test_missing_or_broken_processor_file(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        from_mapping({"huggingface": "nowhere"}, base=tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        from_mapping({"timm": "x.json"}, base=tmp_path)


def spec(*shape: int | str) -> TensorSpec:
    return TensorSpec(name="x", dtype="float32", shape=shape)


@pytest.mark.parametrize(
    ("reader", "config"),
    [
        ("huggingface", {"size": {"shortest_edge": [224]}}),
        ("huggingface", {"size": {"height": None, "width": 8}}),
        ("huggingface", {"size": 8, "image_mean": ["a"]}),
        ("huggingface", {"size": 8, "rescale_factor": {}}),
        ("huggingface", {"size": {"shortest_edge": 224}, "crop_pct": 0}),
        ("huggingface", {"size": 8, "resample": [2]}),
        ("timm", {"input_size": [3, 224]}),
        ("timm", {"input_size": 224}),
        ("timm", {"input_size": [3, 224, 224], "crop_pct": "much"}),
    ],
    ids=str,
)
def test_values_that_are_no_numbers_name_the_file(tmp_path, reader: str, config: dict[str, object]) -> None:
    (tmp_path / "p.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"p\.json"):
        from_mapping({reader: "p.json"}, base=tmp_path)


def test_what_a_table_leaves_open_comes_from_the_models_input() -> None:
    made = completed({"mean": [0.5]}, (spec(1, 5), spec("n", 3, 8, 9)))
    assert made is not None
    assert (made.resize, made.layout, made.color) == ((8, 9), "NCHW", "rgb")
    grey = completed({"scale": 1.0, "crop": [8, 9]}, (spec(1, 8, 9, 1),))
    assert grey is not None
    assert (grey.resize, grey.crop, grey.layout, grey.color) == (None, (8, 9), "NHWC", "gray")


def test_tables_about_other_things_than_images_are_none() -> None:
    image = (spec(1, 3, 8, 8),)
    assert completed({"tokenizer": "wordpiece", "max_tokens": 64}, image) is None
    assert completed({}, image) is None
    assert completed({"mean": [0.5]}, (spec(1, 784),)) is None
    with pytest.raises(UnknownNameError, match="sclae"):
        completed({"mean": [0.5], "sclae": 1.0}, image)


def test_a_contract_finds_its_input_and_its_layout() -> None:
    inputs = (spec(1, 4), TensorSpec(name="y", dtype="uint8", shape=(1, 8, 9, 3)))
    made = bound(Preprocessing(resize=(8, 9)), inputs)
    assert (made.input, made.layout, made.dtype) == ("y", "NHWC", "uint8")
    with pytest.raises(ConfigError, match=r"\[1, 3, 9, 9\]"):
        bound(Preprocessing(resize=(9, 9)), inputs)
    with pytest.raises(ConfigError, match="no input 'z'"):
        bound(Preprocessing(resize=(8, 9), input="z"), inputs)
    with pytest.raises(ConfigError, match="int64"):
        bound(Preprocessing(resize=(8, 9)), (TensorSpec(name="i", dtype="int64", shape=(1, 3, 8, 9)),))


@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_strips_of_a_picture_give_what_the_whole_gives(name: str, antialias: bool, monkeypatch) -> None:
    image = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    whole = resample.resize(image, 11, 70, filter=name, antialias=antialias)
    monkeypatch.setattr(resample, "_AT_ONCE", 700)
    assert np.array_equal(resample.resize(image, 11, 70, filter=name, antialias=antialias), whole)


def test_a_large_picture_takes_little_more_than_itself() -> None:
    image = np.random.default_rng(4).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        for color in ("rgb", "gray"):
            Preprocessing(resize=(32, 32), color=color).fit_image(image)
        assert tracemalloc.get_traced_memory()[1] < 4 * image.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"resize": [32, 32], "input": "zzz"}, ["no input 'zzz'", "one of: x"]),
        (
            {"resize": [32, 32], "layout": "NHWC"},
            ["layout = 'NHWC' does not fit", "x: float32[1, 3, 32, 32]"],
        ),
        ({"layout": "NHWC"}, ["layout = 'NHWC' does", "x: float32[1, 3, 32, 32]"]),
        (
            {"resize": [64, 64]},
            ["resize = [64, 64] does not fit", "[1, 3, 64, 64]", "x: float32[1, 3, 32, 32]"],
        ),
        ({"resize": 64, "crop": [48, 32]}, ["crop = [48, 32] does not fit"]),
        ({"color": "gray"}, ["color = 'gray' does not fit"]),
        ({"resize": [64, 64], "color": "gray", "layout": "NHWC"}, ["color = 'gray', resize = [64, 64]"]),
        ({"dtype": "uint8"}, ["dtype = 'uint8' does not fit"]),
    ],
)
def test_a_table_that_does_not_fit_the_model_names_its_keys(
    table: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        fitting(table, (TensorSpec(name="x", dtype="float32", shape=(1, 3, 32, 32)),))
    assert all(word in raised.value.message + raised.value.hint for word in words), raised.value.message


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32, 3), (4, 3, 32, 32), ("n", 3, "h", "w")])
def test_what_a_table_leaves_open_fits(shape: tuple[int | str, ...]) -> None:
    inputs = (spec(1, 5), TensorSpec(name="x", dtype="float32", shape=shape))
    assert fitting({"mean": [0.5]} if "h" not in shape else {"resize": [32, 32]}, inputs) is not None
    assert fitting({"resize": [32, 32], "input": "x"}, inputs) is not None


def test_a_contract_for_a_model_without_images_is_refused_and_other_tables_are_not() -> None:
    with pytest.raises(ConfigError, match=r"resize, mean is said of an image.*784"):
        fitting({"resize": [28, 28], "mean": [0.5]}, (spec(1, 784),))
    assert fitting({"tokenizer": "wordpiece", "scale": 1.0}, (spec(1, 784),)) is None
    assert fitting({}, (spec(1, 784),)) is None


@pytest.mark.parametrize(
    "values",
    [
        {"mean": [1e300] * 3, "std": [1e-11] * 3},
        {"mean": [1e300]},
        {"std": [1e300]},
        {"scale": 1e300},
        {"scale": 1e-11, "mean": [1e9]},
        {"mean": [float("nan")]},
        {"std": [1.0, float("inf"), 1.0]},
        {"mean": [10**400]},
    ],
)
def test_means_and_deviations_that_leave_no_picture_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="preprocessing"):
        from_mapping({"resize": [4, 4], **values})
