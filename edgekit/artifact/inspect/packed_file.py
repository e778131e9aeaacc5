"""``.ekz``: the index of a packed artifact, and the model in it where that is small enough to be decoded on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from edgekit import entropy
from edgekit.artifact.inspect.inspection import Inspection
from edgekit.core.files import temporary
from edgekit.entropy.forms import Form
from edgekit.errors import EdgekitError
from edgekit.types import Json

_MOST_DECODED = 64 << 20
"""Bytes that are decoded for a look: the adaptive coder takes seconds for them."""
_MOST_FILES = 20


def read(path: Path) -> Inspection:
    """Raises :class:`ContainerError` for what is damaged, :class:`SourceError` where it cannot be read."""
    with entropy.open(path) as container:
        index = container.index
    weights: Counter[str] = Counter()
    for tensor in index.tensors:
        weights[tensor.dtype.name] += tensor.size
    facts: dict[str, Json] = {
        "files": {f.path: f.size for f in index.files[:_MOST_FILES]},
        "unpacked": index.total,
        "tensors": len(index.tensors),
        "clustered": sum(t.form is not Form.PLAIN for t in index.tensors),
    }
    packed = Inspection(
        path=path,
        format="packed artifact (.ekz)",
        size=path.stat().st_size,
        inputs=(),
        outputs=(),
        operators={},
        weights=dict(weights.most_common()),
        facts=facts,
    )
    if index.total > _MOST_DECODED:
        note = f"it unpacks to {index.total:,} bytes: edgekit unpack it first to see its operators"
        return replace(packed, notes=(note,))
    return _with_model(packed, single=index.single)


def _with_model(packed: Inspection, *, single: bool) -> Inspection:
    """With what the model in it has; a file of another kind has nothing to add."""
    from edgekit.artifact.inspect import KINDS, inspect_file

    with temporary("inspect") as folder:
        out = Path(folder) / "unpacked"
        name = next(iter(_files(packed)), "model")
        if single:
            (Path(folder) / "one").mkdir()
            out = Path(folder) / "one" / Path(name).name
        entropy.unpack(packed.path, out, max_output=_MOST_DECODED)
        model = _model([out] if single else sorted(out.rglob("*")), KINDS)
        if model is None:
            return replace(packed, notes=("there is no model in it that edgekit inspect reads",))
        try:
            inner = inspect_file(model)
        except EdgekitError as error:
            return replace(
                packed, notes=(f"{model.name} in it cannot be read: {error.message}".replace(folder, "…"),)
            )
    return replace(
        packed,
        inputs=inner.inputs,
        outputs=inner.outputs,
        operators=inner.operators,
        parameters=inner.parameters,
        macs=inner.macs,
        layers=inner.layers,
        notes=inner.notes,
        facts={**packed.facts, "model": model.name, "format": inner.format},
    )


def _files(packed: Inspection) -> dict[str, Json]:
    files = packed.facts["files"]
    return dict(files) if isinstance(files, dict) else {}


def _model(files: list[Path], kinds: tuple[str, ...]) -> Path | None:
    """The model among an artifact's files: ``model.*`` first."""
    found = [f for f in files if f.is_file() and f.suffix in kinds and f.suffix != ".ekz"]
    return min(
        found, key=lambda f: (f.stem != "model", f.suffix == ".onnx" and len(found) > 1, f.name), default=None
    )
