"""Ships the ONNX as it is; its runtime is ONNX Runtime under another name, and it can be told to crash."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import UnsupportedNode, UnsupportedOperatorsError
from edgekit.plugins import BackendInfo
from edgekit.types import Availability, Lowered, OnnxModel, Option, Placement, Target

NAME = "acme"
INFO = BackendInfo(
    title="Acme Engine",
    requirement="edgekit-acme[engine]",
    wheels=(("acme-engine>=2",),),
    packages=("edgekit-acme",),
    purl="pkg:generic/acme-engine",
    doctor="edgekit_acme.doctor",
    benchmark="edgekit_acme.benchmark",
    form="edgekit_acme.form",
)


def available() -> Availability:
    return Availability(installed=True, usable=True, version="1.0")


def check(model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    import onnx

    graph = onnx.load(model.path, load_external_data=False).graph
    refused = [
        UnsupportedNode(op=n.op_type, node=n.name, reason="the engine has no table for it")
        for n in graph.node
        if n.op_type == "Erf"
    ]
    if refused:
        raise UnsupportedOperatorsError(target.name, refused)


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    shutil.copyfile(model.path, out / target.file)
    runtime = {**options, "int8": str(target.precision) == "int8"}
    return Lowered(files=(target.file,), inputs=model.inputs, outputs=model.outputs, runtime=runtime)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Any]) -> Placement:
    return Placement(precision=str(target.precision), share=1.0, operators=1)
