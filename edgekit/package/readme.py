"""The texts that every package carries: README.md and LICENSE."""

from __future__ import annotations

import json

from edgekit.core import files
from edgekit.errors import UsageError
from edgekit.package import sbom
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import Descriptor
from edgekit.preprocess.contract import Preprocessing
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.types import TensorSpec

_MOST_LICENSE = 16 << 20


def documents(contents: Contents, usage: str, shipped: sbom.Shipped | None = None) -> dict[str, Content]:
    """What every package has besides: README.md with the format's ``usage``, LICENSE, bill of materials."""
    return {
        "README.md": readme(contents, usage=usage),
        "LICENSE": license_text(contents),
        "sbom.cdx.json": sbom.cyclonedx(contents, shipped),
    }


def license_text(contents: Contents) -> bytes:
    """The file that was given, else what is known: an SPDX expression, or that nothing was stated."""
    spec = contents.spec
    if spec.license_file is not None:
        try:
            return files.read(spec.license_file, most=_MOST_LICENSE)
        except OSError as e:
            raise UsageError(
                f"cannot read the licence {spec.license_file}: {e.strerror or e}", hint="name a text file"
            ) from e
    model = (
        f"The model in this package is licensed under: {spec.license} (an SPDX license expression).\n"
        if spec.license
        else "No licence was stated for the model in this package; ask whoever gave it to you.\n"
    )
    return (model + "Wrapper code in this package, where there is any: Apache-2.0.\n").encode()


def readme(contents: Contents, *, usage: str) -> bytes:
    """Inputs, outputs, preprocessing, gates and golden vectors in words; ``usage`` is the format's part."""
    d = contents.descriptor
    lines = [
        f"# {d.name} {d.version}",
        "",
        f"{d.target}: {d.precision} for {d.runtime.name}"
        + (f" (needs {d.runtime.minimum} or newer)" if d.runtime.minimum else "")
        + f". Status of its gates: {d.status}.",
        "",
        "## Use",
        "",
        usage.strip(),
        "",
        "## Inputs and outputs",
        "",
        *(f"- input `{i.name}`: {_tensor(i)}" for i in d.inputs),
        *(f"- output `{o.name}`: {_tensor(o)}" for o in d.outputs),
    ]
    if d.labels:
        lines += ["", f"`labels.txt` names the {d.labels.count} values of `{d.labels.output}`, one a line."]
    if d.preprocessing:
        lines += ["", "## Preprocessing", "", *_contract(d.preprocessing)]
    elif d.stated:
        stated = (f"- {name}: `{json.dumps(value)}`" for name, value in d.stated.items())
        lines += ["", "## Preprocessing", "", "As stated by the model's author:", "", *stated]
    if d.postprocessing:
        lines += ["", "## Post-processing", "", *_after(d.postprocessing)]
    lines += ["", "## Gates", "", *_gates(d), "", "## Golden vectors", "", *_golden(d), ""]
    return "\n".join(lines).encode()


def _tensor(spec: TensorSpec) -> str:
    text = f"{spec.dtype} {list(spec.shape)}"
    if spec.scale is not None:
        text += f", real value = {spec.scale!r} × (stored − {spec.zero_point or 0})"
    return text


def _contract(p: Preprocessing) -> list[str]:
    steps = []
    if p.color == "gray":
        steps.append("grey: (19595 R + 38470 G + 7471 B + 32768) >> 16")
    if isinstance(p.resize, int):
        steps.append(f"shortest edge to {p.resize}, the other follows rounded down; {_filter(p)}")
    elif p.resize is not None:
        how = "stretched" if p.fit == "stretch" else f"aspect ratio kept, padded with {p.pad_value}"
        steps.append(f"resize to {p.resize[0]} high, {p.resize[1]} wide, {how}; {_filter(p)}")
    if p.crop is not None:
        steps.append(f"central {p.crop[0]} high, {p.crop[1]} wide (odd margins: {p.crop_rounding})")
    steps.append(f"channels in the order {p.color}")
    steps.append(f"(value × {p.scale!r} − {list(p.mean)}) / {list(p.std)}, in double, rounded once")
    steps.append(f"layout {p.layout}, {p.dtype}")
    return ["From RGB, 8 bits a channel:", "", *(f"{i}. {step}" for i, step in enumerate(steps, 1))]


def _after(p: Postprocessing) -> list[str]:
    if p.is_boxes:
        count = "the last axis" if p.columns else "the axis before the last"
        shown = "" if p.activation == "none" else f" through {p.activation}"
        nothing = "" if p.background < 0 else f", {p.background} is nothing"
        return [
            f"`detect()` reads boxes ({p.box_format}, divided by {p.size[0]:g} high and {p.size[1]:g} wide) of "
            f"`{p.boxes}` and scores{shown} of `{p.output}`, by {count}.",
            f"Of each candidate the best class counts{nothing}; less than {p.min_score:g} is dropped, and so is a box "
            f"whose intersection over union with a better one of its class is more than {p.max_overlap:g}. "
            f"At most {p.most}.",
            "Corners are in pixels of the image that `detect()` was given, not beyond its edges. `boxes(outputs)` "
            "alone gives them as shares of the model's input: of the image as it was resized and cropped.",
        ]
    what = {
        "none": f"The scores of `classify()` are the values of `{p.output}` as they are.",
        "softmax": f"The scores of `classify()` are the softmax of `{p.output}`, in double.",
        "sigmoid": f"The scores of `classify()` are the sigmoid of `{p.output}`, in double: each class by itself.",
    }
    return [what[p.kind]]


def _filter(p: Preprocessing) -> str:
    return f"{p.filter}{'' if p.antialias else ' without antialiasing'}, rounded to 8 bits a pass"


def _gates(d: Descriptor) -> list[str]:
    if not d.gates:
        return ["None were set."]
    rows = [
        f"| {g.name} | {'' if g.limit is None else f'{g.limit:g}'} | "
        f"{'' if g.value is None else f'{g.value:.6g}'} | {g.verdict} |"
        for g in d.gates
    ]
    return ["| gate | limit | value | verdict |", "| --- | --- | --- | --- |", *rows]


def _golden(d: Descriptor) -> list[str]:
    if not d.golden.cases:
        return [
            "Left out of this package (`--no-golden`): its self-test says so, and only the CPU is taken. They were",
            "replayed when it was written; the package with them is the one to test with.",
        ]
    limits = ", ".join(f"{k} {v:g}" for k, v in d.golden.tolerance.items())
    return [
        f"`golden/` holds {len(d.golden.cases)} cases as raw little-endian values: the image where there is",
        "one, the tensor that the model is fed, and what the runtime answered when this was packaged.",
        "The fed tensor must agree bit for bit. An output passes when the largest difference is at most this",
        f"part of the largest expected value: {limits}.",
        "",
        "`edgekit verify` on a bundle repeats all of it.",
    ]
