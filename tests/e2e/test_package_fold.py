"""``--set fold_preprocessing=true``: the artifact takes pixels, and is compared with the source all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import package_support as support
import package_tools as tools
import pytest
import torch
from package_mediapipe import mediapipe_scores
from torch import nn

import edgekit
from edgekit.artifact import golden
from edgekit.artifact.manifest import Artifact
from edgekit.errors import ConfigError
from edgekit.package import PackageSpec, package, verify_bundle
from edgekit.preprocess.contract import Preprocessing
from edgekit.preprocess.declared import from_mapping
from edgekit.types import TorchModel

CONTRACT = Preprocessing(
    resize=20,
    crop=(16, 16),
    color="bgr",
    mean=(0.406, 0.456, 0.485),
    std=(0.225, 0.224, 0.229),
)
FLOAT = ("ort-fp32", "tflite-fp32", "openvino-fp32")
INT8 = ("ort-int8", "tflite-int8", "openvino-int8")


class Net(nn.Module):
    """Seven classes of a 16 × 16 image; every channel and place counts, and the border is padded."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12 * 16, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(image))))
        return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))


def model(contract: Preprocessing = CONTRACT) -> TorchModel:
    torch.manual_seed(3)
    module = Net(contract.channels).eval()
    image = torch.from_numpy(contract.apply(images()[3]))
    return TorchModel(
        module=module,
        example_inputs={"image": image},
        labels=tuple("abcdefg"),
        preprocessing=contract.to_mapping(),
    )


def images() -> list[np.ndarray]:
    return list(support.images(24)[0])


def samples(contract: Preprocessing = CONTRACT) -> list[dict[str, np.ndarray]]:
    return [{"image": contract.apply(image)} for image in images()]


def built(
    out: Path, targets: tuple[str, ...], contract: Preprocessing = CONTRACT, **settings: object
) -> list[Artifact]:
    source = model(contract)
    fed = samples(contract)
    factory = out / "factory.py"
    out.mkdir(parents=True, exist_ok=True)
    torch.save(source.module.state_dict(), out / "weights.pt")
    factory.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_package_fold import model\n"
        "from edgekit.preprocess.declared import from_mapping\n"
        f"def made():\n    return model(from_mapping({contract.to_mapping()!r}))\n"
    )
    result = edgekit.build(
        f"{factory}:made",
        targets=targets,
        calibration=fed,
        out=out / "build",
        options=edgekit.Options(set={"fold_preprocessing": True, **settings}, speed_gate=False),
    )
    return result.raise_for_failures().artifacts


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    for package_ in ("ai_edge_litert", "openvino"):
        pytest.importorskip(package_)
    made = built(tmp_path_factory.mktemp("fold"), (*FLOAT, *INT8))
    return {a.target: a for a in made}


@pytest.mark.parametrize("target", [*FLOAT, *INT8])
def test_the_artifact_takes_pixels_and_gives_what_the_source_gives(
    artifacts: dict[str, Artifact], target: str
) -> None:
    made = artifacts[target].manifest
    assert made.status == "passed"
    (spec,) = made.inputs
    assert (spec.shape, spec.dtype, spec.layout) == ((1, 16, 16, 3), "float32", "NHWC")
    assert made.settings["fold_preprocessing"] is True
    assert "fold-preprocessing" in [s.name for s in made.steps]
    left = from_mapping(made.preprocessing)
    assert left is not None
    assert left.is_folded
    assert (left.resize, left.crop) == (20, (16, 16))
    inputs, outputs = golden.read(artifacts[target].directory / "golden.npz")
    source = model().module
    for image, fed, expected in zip(images(), inputs, outputs, strict=False):
        np.testing.assert_array_equal(fed["image"], CONTRACT.fit_image(image)[None, ..., ::-1])
        with torch.inference_mode():
            wanted = source(torch.from_numpy(CONTRACT.apply(image)))
        np.testing.assert_allclose(next(iter(expected.values())), wanted, atol=1e-5)
    assert made.parity is not None
    assert made.parity.snr_db > (100 if target in FLOAT else 25)
    assert golden.replay(artifacts[target]).status == "passed"


def test_what_was_quantized_is_what_it_is_without_folding(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    result = edgekit.build(
        model().module,
        {"image": model().example_inputs["image"]},
        targets=["tflite-int8"],
        calibration=samples(),
        out=tmp_path / "plain",
        options=edgekit.Options(speed_gate=False),
    )
    (plain,) = result.raise_for_failures().artifacts
    digests = [{s.name: s.output_sha256 for s in a.manifest.steps} for a in (plain, artifacts["tflite-int8"])]
    assert digests[0]["quantize"] == digests[1]["quantize"]
    assert digests[0]["lower"] != digests[1]["lower"]


@pytest.mark.parametrize("target", ["ort-fp32", "tflite-int8", "openvino-int8"])
def test_its_bundle_feeds_pixels(artifacts: dict[str, Artifact], target: str, tmp_path: Path) -> None:
    spec = PackageSpec(format="bundle", name="com.example.seven", version="1.0.0", license="MIT")
    made = package(artifacts[target], spec, tmp_path / "out").directory / "com.example.seven-1.0.0"
    report = verify_bundle(made)
    assert report.passed
    assert all(c.preprocessed for c in report.cases)
    contract = report.descriptor.preprocessing
    assert contract is not None
    assert contract.is_folded
    text = (made / "README.md").read_text()
    assert "layout NHWC" in text
    assert "channels in the order rgb" in text


@pytest.mark.parametrize("target", ["tflite-fp32", "tflite-int8"])
def test_its_tflite_metadata_is_that_of_plain_rgb(
    artifacts: dict[str, Artifact], target: str, tmp_path: Path
) -> None:
    spec = PackageSpec(format="tflite-metadata", name="com.example.seven", version="1.0.0", license="MIT")
    made = package(artifacts[target], spec, tmp_path / "out").directory
    assert (made / "seven.tflite").is_file()


@pytest.mark.parametrize("target", ["ort-int8", "tflite-int8", "openvino-fp32"])
def test_bytes_as_input(target: str, tmp_path: Path) -> None:
    for package_ in ("ai_edge_litert", "openvino"):
        pytest.importorskip(package_)
    (made,) = built(tmp_path / "u8", (target,), pixels="uint8")
    assert made.manifest.inputs[0].dtype == "uint8"
    inputs, _ = golden.read(made.directory / "golden.npz")
    assert inputs[0]["image"].dtype == np.uint8
    spec = PackageSpec(format="bundle", name="com.example.seven", version="1.0.0", license="MIT")
    report = verify_bundle(package(made, spec, tmp_path / "out").directory / "com.example.seven-1.0.0.zip")
    assert report.passed
    assert report.descriptor.preprocessing is not None
    assert report.descriptor.preprocessing.dtype == "uint8"


@pytest.mark.parametrize("pixels", ["float32", "uint8"])
def test_a_grey_model_takes_colour(pixels: str, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    grey = Preprocessing(crop=(16, 16), color="gray", mean=(0.2,), std=(0.4,))
    made = built(tmp_path / "grey", ("ort-fp32", "tflite-int8"), grey, pixels=pixels)
    module = model(grey).module
    for artifact in made:
        assert artifact.manifest.inputs[0].shape == (1, 16, 16, 3)
        assert artifact.manifest.preprocessing["color"] == "rgb"
    image = images()[5]
    fed = {"image": image[None].astype(pixels)}
    (found,) = made[0].predict([fed])
    with torch.inference_mode():
        wanted = module(torch.from_numpy(grey.apply(image)))
    np.testing.assert_allclose(next(iter(found.values())), wanted, atol=1e-5)


def test_mediapipe_takes_a_grey_model(tmp_path: Path) -> None:
    tools.need(tools.MEDIAPIPE)
    pytest.importorskip("ai_edge_litert")
    grey = Preprocessing(resize=(16, 16), color="gray", mean=(0.2,), std=(0.4,))
    (made,) = built(tmp_path / "grey", ("tflite-fp32",), grey)
    spec = PackageSpec(format="tflite-metadata", name="com.example.seven", version="1.0.0")
    labels = tmp_path / "labels"
    labels.write_text("".join(f"{c}\n" for c in "abcdefg"))
    out = package(made, replace(spec, labels=labels), tmp_path / "out").directory
    files = [tmp_path / f"{i}.npy" for i in range(3)]
    for file, image in zip(files, images(), strict=False):
        np.save(file, image)
    with torch.inference_mode():
        wanted = [model(grey).module(torch.from_numpy(grey.apply(i)))[0] for i in images()[:3]]
    for scores, expected in zip(mediapipe_scores(out / "seven.tflite", files), wanted, strict=True):
        np.testing.assert_allclose([scores[c] for c in "abcdefg"], expected, atol=1e-4)


def test_a_source_without_contract_is_refused(tmp_path: Path) -> None:
    example = {"image": model().example_inputs["image"]}
    options = edgekit.Options(set={"fold_preprocessing": True})
    with pytest.raises(ConfigError, match="no preprocessing contract") as raised:
        edgekit.build(model().module, example, targets=["ort-fp32"], out=tmp_path / "o", options=options)
    assert "[preprocessing]" in raised.value.hint
    wrong = replace(options, preprocessing={"resize": [15, 16]})
    with pytest.raises(ConfigError, match=r"\[1, 3, 15, 16\]"):
        edgekit.build(model().module, example, targets=["ort-fp32"], out=tmp_path / "o", options=wrong)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("settings", [{"pixels": "uint8"}, {"fold_preprocessing": True, "pixels": "int8"}])
def test_impossible_settings(settings: dict[str, object], tmp_path: Path) -> None:
    example = {"image": model().example_inputs["image"]}
    options = edgekit.Options(set=settings)
    with pytest.raises(ConfigError, match="pixels"):
        edgekit.build(model().module, example, targets=["ort-fp32"], out=tmp_path / "o", options=options)


@pytest.mark.parametrize("target", ["ort-fp32", "tflite-int8", "openvino-fp32"])
def test_diff_walks_from_the_source_to_it(artifacts: dict[str, Artifact], target: str) -> None:
    from edgekit.core.config import Options
    from edgekit.core.progress import Silent
    from edgekit.core.store import Store
    from edgekit.diff import walk
    from edgekit.diff.resolve import resolve
    from edgekit.pipeline.stages import BuildContext

    context = BuildContext(store=Store(), options=Options(), progress=Silent())
    chain = resolve(str(artifacts[target].directory), "", None, context)
    assert chain.samples[0]["image"].shape == CONTRACT.shape
    walked = walk(chain.forms, chain.samples, chain.notes)
    assert walked.broken is None
    assert walked.output_db > (100 if target in FLOAT else 25)


def test_a_search_feeds_it_with_the_sources_inputs(artifacts: dict[str, Artifact]) -> None:
    from edgekit.artifact.run import runnable
    from edgekit.pipeline.pixels import recorded
    from edgekit.search.judge import from_source

    artifact = artifacts["tflite-int8"]
    stored, _ = golden.read(artifact.directory / "golden.npz")
    taken = from_source(runnable(artifact), recorded(artifact.manifest)).bind(samples()[0])
    np.testing.assert_array_equal(taken["image"], stored[0]["image"])


def test_a_contract_that_leaves_the_size_open_is_written_out(tmp_path: Path) -> None:
    example = {"image": model().example_inputs["image"]}
    options = edgekit.Options(preprocessing={"mean": [0.5], "std": [0.5]})
    result = edgekit.build(model().module, example, targets=["ort-fp32"], out=tmp_path / "o", options=options)
    assert edgekit.open(result.artifacts[0].directory).manifest.preprocessing["resize"] == [16, 16]
