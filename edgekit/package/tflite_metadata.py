"""One ``.tflite`` that describes itself: TFLite Metadata inside, the label file in a zip behind it.

MediaPipe Tasks and TFLite Support read both and do resizing, normalisation and class names themselves.
The folder around it is a bundle, so ``edgekit verify`` replays this very file.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import flatbuffers

from edgekit.backends.tflite import flatbuffer_schema
from edgekit.backends.tflite.reading import read_tree
from edgekit.errors import UnsupportedError
from edgekit.package import rewritten, tflite_schema, writing
from edgekit.package.contents import Contents
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.preprocess.contract import Preprocessing
from edgekit.types import TensorSpec

FORMAT = Format(
    help="one .tflite with metadata and labels inside, for MediaPipe Tasks", backends=("tflite",), bundle=True
)

ENTRY = "TFLITE_METADATA"

_OTHER = """
`{file}` names its tensors and their files for tools that read TFLite Metadata. MediaPipe Tasks has no task that takes
it as it is ({why}): run it with LiteRT's own API."""

_CLASSIFIER = """
`{file}` goes into an app as it is. With MediaPipe Tasks:

```python
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path="{file}"), max_results=3)
classifier = vision.ImageClassifier.create_from_options(options)
```

MediaPipe resizes images in its own way; for an image that has the model's size already its scores are those
of the golden vectors."""


def write(contents: Contents, out: Path) -> None:
    """``<name>.tflite`` and the rest of a bundle in ``out``, then a replay of it."""
    described = contents.descriptor
    file = f"{contents.spec.short_name}.tflite"
    info = model_info(described)
    labels = contents.files.get("labels.txt", b"")
    model = with_metadata(contents.model.read_bytes(), info)
    if described.labels is not None:
        assert isinstance(labels, bytes)
        model = with_files(model, {described.labels.file: labels})
    why = _no_classifier(described)
    usage = _OTHER.format(file=file, why=why) if why else _CLASSIFIER.format(file=file)
    rewritten.write(contents, file, model, out, usage=usage)


def _no_classifier(described: Descriptor) -> str:
    """Why MediaPipe's ImageClassifier does not take the model; empty where it does."""
    if described.preprocessing is None:
        return "no input is an image with a preprocessing contract"
    if len(described.inputs) > 1:
        return f"it has {len(described.inputs)} inputs"
    if described.labels is None:
        return "no output has labels"
    scores = next(o for o in described.outputs if o.name == described.labels.output)
    if any(d != 1 for d in scores.shape[:-1]):
        return f"{scores.name} is not one row of scores"
    return ""


def model_info(described: Descriptor) -> tflite_schema.ModelInfo:
    """What the metadata says. Raises :class:`UnsupportedError` for a contract that it cannot express."""
    labels = described.labels
    return tflite_schema.ModelInfo(
        name=described.name,
        description=f"{described.target}, written by edgekit {described.edgekit}",
        version=described.version,
        license=described.license,
        inputs=tuple(_input(spec, described.preprocessing) for spec in described.inputs),
        outputs=tuple(
            tflite_schema.TensorInfo(
                name=spec.name, labels_file=labels.file if labels and labels.output == spec.name else ""
            )
            for spec in described.outputs
        ),
    )


def with_metadata(model: bytes, info: tflite_schema.ModelInfo) -> bytes:
    """``model`` with ``info`` as its ``TFLITE_METADATA``; metadata that was there is replaced."""
    schema = flatbuffer_schema()
    tree = read_tree(model, "the model")
    # A model that was packaged before has one: readers take the first they find.
    others = [m for m in tree.metadata or () if m.name not in (ENTRY, ENTRY.encode())]
    buffer = schema.BufferT()
    buffer.data = tflite_schema.encode(info)
    entry = schema.MetadataT()
    entry.name, entry.buffer = ENTRY, len(tree.buffers or ())
    tree.buffers = [*(tree.buffers or ()), buffer]
    tree.metadata = [*others, entry]
    builder = flatbuffers.Builder(len(model) + (64 << 10))
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def with_files(model: bytes, files: dict[str, bytes]) -> bytes:
    """``model`` with a zip archive of ``files`` behind it, uncompressed, as readers expect it."""
    buffer = io.BytesIO(model)
    # Append mode looks for the archive at the end and leaves what is before it: readers of flatbuffers see
    # the model.
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(writing.entry(name), data)
    return buffer.getvalue()


def _input(spec: TensorSpec, contract: Preprocessing | None) -> tflite_schema.TensorInfo:
    if contract is None or contract.input != spec.name:
        return tflite_schema.TensorInfo(name=spec.name)
    _check_expressible(spec, contract)
    height, width = contract.size
    # The metadata knows (value - mean) / std only: the scale goes into both.
    image = tflite_schema.ImageInput(
        height=height,
        width=width,
        gray=contract.color == "gray",
        mean=tuple(m / contract.scale for m in contract.mean),
        std=tuple(s / contract.scale for s in contract.std),
    )
    return tflite_schema.TensorInfo(
        name=spec.name, description=f"image, {contract.color}, resized with {contract.filter}", image=image
    )


def _check_expressible(spec: TensorSpec, contract: Preprocessing) -> None:
    if contract.color == "gray":
        raise UnsupportedError(
            f"MediaPipe Tasks feeds three colour channels; {spec.name} takes one",
            hint="build the artifact with --set fold_preprocessing=true, which takes RGB and converts it to grey",
        )
    fold = "build the artifact with --set fold_preprocessing=true, which leaves RGB pixels as its input"
    if contract.layout != "NHWC" or contract.color == "bgr":
        raise UnsupportedError(
            f"TFLite Metadata describes RGB images with channels last; {spec.name} takes "
            f"{contract.color} in {contract.layout}",
            hint=fold,
        )
    if spec.dtype == "int8":
        raise UnsupportedError(
            f"MediaPipe Tasks feeds float32 or uint8; {spec.name} is int8",
            hint="build it with float32 inputs and outputs (the default)",
        )
