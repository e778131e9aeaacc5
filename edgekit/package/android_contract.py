"""``Contract.java``: the descriptor as Java constants, so that the wrapper reads no JSON on the phone."""

from __future__ import annotations

import json
from collections.abc import Iterable

from edgekit.package.descriptor import Descriptor, GoldenCase, TensorFile
from edgekit.preprocess.contract import Preprocessing
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.types import TensorSpec

ACCELERATORS = ("cpu", "gpu", "npu")
"""In the order of Accelerator.java."""


def source(described: Descriptor, folder: str) -> bytes:
    """The Java source; ``folder`` is where the package's files are among the app's assets."""
    labels = described.labels
    # In the order of Accelerator.java, which indexes this array.
    limits = ", ".join(repr(float(described.golden.tolerance[a])) for a in ACCELERATORS)
    lines = [
        f"package {described.name};",
        "",
        "/** What edgekit.json says. */",
        "final class Contract {",
        f"    static final String NAME = {_text(described.name)};",
        f"    static final String FOLDER = {_text(folder)};",
        f"    static final String MODEL = {_text(described.files[0])};",
        f"    static final String LABELS = {_text(labels.file) if labels else 'null'};",
        f"    static final String LABELS_SHA256 = {_text(labels.sha256 if labels else '')};",
        f"    static final double[] TOLERANCES = {{{limits}}};",
        f"    static final TensorSpec[] INPUTS = {{{tensor_specs(described.inputs)}}};",
        f"    static final TensorSpec[] OUTPUTS = {{{tensor_specs(described.outputs)}}};",
        f"    static final ImageContract IMAGE = {'image()' if described.preprocessing else 'null'};",
        f"    static final OutputContract RESULT = {'result()' if described.postprocessing else 'null'};",
        "    static final GoldenCase[] GOLDEN = {",
        *(f"        {_case(case)}," for case in described.golden.cases),
        "    };",
        *(image_function(described.preprocessing) if described.preprocessing else ()),
        *(result_function(described.postprocessing) if described.postprocessing else ()),
        "",
        "    private Contract() {}",
        "}",
    ]
    return "\n".join(lines).encode() + b"\n"


def image_function(p: Preprocessing) -> list[str]:
    """``image()``, which fills an ImageContract."""
    edge = p.resize if isinstance(p.resize, int) else 0
    values = {
        "input": _text(p.input),
        "edge": str(edge),
        "resize": "null" if edge or p.resize is None else _ints(p.resize),  # type: ignore[arg-type]
        "pad": _flag(p.fit == "pad"),
        "padValue": str(p.pad_value),
        "filter": _text(p.filter),
        "antialias": _flag(p.antialias),
        "crop": "null" if p.crop is None else _ints(p.crop),
        "cropHalfEven": _flag(p.crop_rounding == "half-even"),
        "gray": _flag(p.color == "gray"),
        "bgr": _flag(p.color == "bgr"),
        "scale": repr(p.scale),
        "mean": _doubles(p.mean),
        "std": _doubles(p.std),
        "channelsFirst": _flag(p.layout == "NCHW"),
    }
    return [
        "",
        "    private static ImageContract image() {",
        "        ImageContract c = new ImageContract();",
        *(f"        c.{name} = {value};" for name, value in values.items()),
        "        return c;",
        "    }",
    ]


def result_function(p: Postprocessing) -> list[str]:
    """``result()``, which fills an OutputContract."""
    values = {
        "kind": _text(p.kind),
        "output": _text(p.output),
        "boxes": _text(p.boxes),
        "boxFormat": _text(p.box_format),
        "columns": _flag(p.columns),
        "activation": _text(p.activation),
        "background": str(p.background),
        "height": repr(float(p.size[0])),
        "width": repr(float(p.size[1])),
        "minScore": repr(float(p.min_score)),
        "maxOverlap": repr(float(p.max_overlap)),
        "most": str(p.most),
    }
    return [
        "",
        "    private static OutputContract result() {",
        "        OutputContract c = new OutputContract();",
        *(f"        c.{name} = {value};" for name, value in values.items()),
        "        return c;",
        "    }",
    ]


def tensor_specs(specs: Iterable[TensorSpec]) -> str:
    """Constructor calls of TensorSpec, comma-separated."""
    return ", ".join(
        f"new TensorSpec({_text(s.name)}, {_text(s.dtype)}, "
        f"{_ints(d if isinstance(d, int) else -1 for d in s.shape)}, "
        f"{'Double.NaN' if s.scale is None else repr(s.scale)}, {s.zero_point or 0})"
        for s in specs
    )


def _case(case: GoldenCase) -> str:
    image = case.image
    return (
        f"new GoldenCase({_text(case.name)}, {_text(case.label)}, {_text(image.file) if image else 'null'}, "
        f"{image.height if image else 0}, {image.width if image else 0}, "
        f"new GoldenCase.Stored[] {{{_stored(case.inputs)}}}, "
        f"new GoldenCase.Stored[] {{{_stored(case.outputs)}}}, "
        f"{_stored([case.result]) if case.result else 'null'}, "
        f"{_stored([case.placed]) if case.placed else 'null'})"
    )


def _stored(files: Iterable[TensorFile]) -> str:
    return ", ".join(
        f"new GoldenCase.Stored({', '.join((_text(t.file), _text(t.dtype), *map(str, t.shape)))})"
        for t in files
    )


def _text(value: str) -> str:
    """A Java string literal: JSON's escapes are Java's, and everything outside ASCII is escaped."""
    return json.dumps(value)


def _ints(values: Iterable[int]) -> str:
    return f"new int[] {{{', '.join(map(str, values))}}}"


def _doubles(values: Iterable[float]) -> str:
    return f"new double[] {{{', '.join(repr(float(v)) for v in values)}}}"


def _flag(value: bool) -> str:
    return "true" if value else "false"
