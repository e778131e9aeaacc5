"""A Swift package: numerics in C over ONNX Runtime, a thin Swift interface, resources and golden tests.

The C is built and run on golden vectors wherever a C compiler and ONNX Runtime are; the Swift was parsed
but not compiled by edgekit's own tests, because there is no Swift tool chain on its CI. The README says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from edgekit.errors import UnsupportedError
from edgekit.package import readme, sbom, templates, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.coordinates import camel_case
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.preprocess.contract import Preprocessing
from edgekit.types import TensorSpec

FORMAT = Format(help="a Swift package with its numerics in C, and a podspec", template=True)

_DTYPES = {
    "float32": "EK_FLOAT32",
    "uint8": "EK_UINT8",
    "int8": "EK_INT8",
    "int32": "EK_INT32",
    "int64": "EK_INT64",
    "bool": "EK_BOOL",
}
_USAGE = r"""
```swift
// Package.swift: .package(path: "…/this folder")
import {module}

let model = try {module}()
let failed = try model.selfTest().filter {{ !$0.passed }}   // on the device, once: the first start of a version
guard failed.isEmpty else {{
    throw {module}.ModelError(description: "self-test: \(failed.map(\.message))")
}}
{call}
```

It needs iOS {ios} or macOS {macos}, as ONNX Runtime {runtime} does. The App Store
refuses an app with it as long as the runtime's framework states no `MinimumOSVersion` (ITMS-90530, ITMS-90360 and
ITMS-90208 name `onnxruntime.framework`; so it is in 1.24.2). Then, after archiving and before exporting:

```sh
APP="$ARCHIVE/Products/Applications/NAME.app"
/usr/libexec/PlistBuddy -c "Add :MinimumOSVersion string {ios}.0" "$APP/Frameworks/onnxruntime.framework/Info.plist"
```

The numerics are C; they were built and run on the golden vectors on Linux. The Swift around them was parsed,
not compiled, when this template was tested: run `swift test` (or the tests in Xcode) once on a Mac."""


def write(contents: Contents, out: Path) -> None:
    """The Swift package's folder, with a podspec."""
    described = contents.descriptor
    _check(described)
    template = templates.load(described.backend, "ios-spm").for_runtime(described.runtime.minimum)
    module = module_name(described)
    values = {
        "MODULE": module,
        "C_PREFIX": c_prefix(described),
        "NAME": described.name,
        "VERSION": described.version,
        "TARGET": described.target,
        "LICENSE_ID": described.license or "See LICENSE",
    }
    files: dict[str, Content] = dict(template.filled(values))
    files[f"Sources/{module}Core/contract.c"] = contract_source(described)
    files |= {f"Sources/{module}/assets/{name}": content for name, content in contents.files.items()}
    usage = _USAGE.format(
        module=module,
        call=_call(described),
        ios=template.values["IOS"],
        macos=template.values["MACOS"],
        runtime=template.values["RUNTIME_VERSION"],
    )
    # No package URL of its own: Swift's have the host that a package is published on.
    shipped = sbom.Shipped(
        runtime="pkg:swift/" + template.values["RUNTIME_URL"].removeprefix("https://"),
        runtime_version=template.values["RUNTIME_VERSION"],
    )
    writing.write_tree(files | readme.documents(contents, usage, shipped), out)


def _call(described: Descriptor) -> str:
    """One call, that compiles: on an image, or on the raw bytes of every input."""
    if described.preprocessing and len(described.inputs) == 1:
        return f"let result = try model.{described.image_method}(cgImage)   // a CGImage"
    sizes = ", ".join(f"[UInt8](repeating: 0, count: {_bytes(s)})" for s in described.inputs)
    names = ", ".join(i.name for i in described.inputs)
    return f"let outputs = try model.run([{sizes}])   // the bytes of {names}"


def _bytes(spec: TensorSpec) -> int:
    width = {"float32": 4, "int32": 4, "int64": 8}.get(spec.dtype, 1)
    return width * math.prod(d if isinstance(d, int) else 1 for d in spec.shape)


def module_name(described: Descriptor) -> str:
    """``com.example.hand_digits`` gives ``HandDigits``."""
    return camel_case(described.name.rsplit(".", 1)[1])


def c_prefix(described: Descriptor) -> str:
    """What every C symbol begins with, so that two packages fit in one app."""
    return described.name.replace(".", "_")


def contract_source(described: Descriptor) -> bytes:
    """``contract.c``: the descriptor as C constants."""
    p = c_prefix(described)
    labels = described.labels
    lines = [
        '#include "contract.h"',
        "",
        "/* What edgekit.json says. */",
        f"const char *const {p}_model_file = {_text(described.files[0])};",
        f"const char *const {p}_labels_file = {_text(labels.file) if labels else 'NULL'};",
        f"const double {p}_tolerance = {described.golden.tolerance['cpu']!r};",
        f"const size_t {p}_inputs_size = {len(described.inputs)};",
        f"const size_t {p}_outputs_size = {len(described.outputs)};",
        f"const size_t {p}_golden_size = {len(described.golden.cases)};",
        f"const ek_tensor {p}_inputs[] = {{{_specs(described.inputs)}}};",
        f"const ek_tensor {p}_outputs[] = {{{_specs(described.outputs)}}};",
        f"const ek_image {p}_image = {_image(described)};",
        f"const ek_result {p}_after = {_result(described)};",
        *_golden(described, p),
    ]
    return "\n".join(lines).encode() + b"\n"


def _golden(described: Descriptor, prefix: str) -> list[str]:
    lines, rows = [], []
    for i, case in enumerate(described.golden.cases):
        for kind, tensors in (("inputs", case.inputs), ("outputs", case.outputs)):
            files = ", ".join(_text(t.file) for t in tensors)
            lines.append(f"static const char *const {kind}_{i}[] = {{{files}}};")
        image = case.image
        where = f"{_text(image.file)}, {image.height}, {image.width}" if image else "NULL, 0, 0"
        result = f"{_text(case.result.file)}, {math.prod(case.result.shape)}" if case.result else "NULL, 0"
        placed = _text(case.placed.file) if case.placed else "NULL"
        rows.append(
            f"    {{{_text(case.name)}, {_text(case.label)}, {where}, inputs_{i}, outputs_{i}, {result}, {placed}}},"
        )
    # C has no arrays without elements; their number is 0 all the same.
    return [*lines, f"const ek_golden {prefix}_golden[] = {{", *(rows or ["    {0},"]), "};"]


def _image(described: Descriptor) -> str:
    p = described.preprocessing
    if p is None:
        return "{.input = -1}"
    edge = p.resize if isinstance(p.resize, int) else 0
    resize = p.resize if isinstance(p.resize, tuple) else (0, 0)
    crop = p.crop or (0, 0)
    return (
        f"{{.input = {[i.name for i in described.inputs].index(p.input)}, .edge = {edge}, "
        f".resize = {{{resize[0]}, {resize[1]}}}, .pad = {int(p.fit == 'pad')}, .pad_value = {p.pad_value}, "
        f".filter = EK_{p.filter.upper()}, .antialias = {int(p.antialias)}, "
        f".crop = {{{crop[0]}, {crop[1]}}}, .crop_half_even = {int(p.crop_rounding == 'half-even')}, "
        f".gray = {int(p.color == 'gray')}, .bgr = {int(p.color == 'bgr')}, "
        f".channels_first = {int(p.layout == 'NCHW')}, .scale = {p.scale!r}, "
        f".mean = {{{_channels(p, p.mean)}}}, .std = {{{_channels(p, p.std)}}}}}"
    )


def _result(described: Descriptor) -> str:
    p = described.postprocessing
    if p is None:
        return "{.kind = -1}"
    names = [o.name for o in described.outputs]
    return (
        f"{{.kind = EK_{p.kind.upper()}, .output = {names.index(p.output)}, "
        f".boxes = {names.index(p.boxes) if p.is_boxes else 0}, .format = EK_{p.box_format.upper()}, "
        f".columns = {int(p.columns)}, .activation = EK_{p.activation.upper()}, .background = {p.background}, "
        f".height = {float(p.size[0])!r}, .width = {float(p.size[1])!r}, .min_score = {float(p.min_score)!r}, "
        f".max_overlap = {float(p.max_overlap)!r}, .most = {p.most}}}"
    )


def _channels(p: Preprocessing, values: tuple[float, ...]) -> str:
    return ", ".join(repr(float(v)) for v in (values * p.channels if len(values) == 1 else values))


def _specs(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(
        f"{{{_text(s.name)}, {_DTYPES[s.dtype]}, {len(s.shape)}, "
        f"{{{', '.join(str(d) if isinstance(d, int) else '1' for d in s.shape) or '0'}}}, "
        f"{int(s.scale is not None)}, {s.scale or 0.0!r}, {s.zero_point or 0}}}"
        for s in specs
    )


def _text(value: str) -> str:
    """A C string literal in UTF-8; octal escapes end after three digits whatever follows."""
    return '"' + "".join(_character(b) for b in value.encode()) + '"'


def _character(byte: int) -> str:
    # A question mark is escaped because of C's trigraphs (??/ is a backslash).
    safe = 0x20 <= byte < 0x7F and byte not in b'"\\?'
    return chr(byte) if safe else f"\\{byte:03o}"


def _check(described: Descriptor) -> None:
    for spec in (*described.inputs, *described.outputs):
        # ek_tensor has room for 8 dimensions.
        if spec.dtype not in _DTYPES or len(spec.shape) > 8:
            raise UnsupportedError(
                f"the C interface does not take {spec}",
                hint="build the artifact with float32 inputs and outputs (the default)",
            )
    shapes = {
        s.name: tuple(d if isinstance(d, int) else 1 for d in s.shape)
        for s in (*described.inputs, *described.outputs)
    }
    # C structures of fixed size: what varies between cases cannot be declared.
    for case in described.golden.cases:
        for tensor in (*case.inputs, *case.outputs):
            if tensor.shape != shapes[tensor.name]:
                raise UnsupportedError(
                    f"{tensor.name} has a dynamic shape ({json.dumps(tensor.shape)} in a golden vector)",
                    hint="build the artifact with fixed shapes, or use another format",
                )
