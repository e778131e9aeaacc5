"""The arithmetic of the post-processing contract: how outputs become what an app shows, the same in every language.

What a contract may say is in :mod:`edgekit.preprocess.postprocessing`. Everything is computed in double
on the outputs' real values rounded to float32; :func:`apply` is what wrappers are compared with.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.core import files
from edgekit.core.structure import structure
from edgekit.errors import DataError, UnknownNameError, UsageError
from edgekit.package.golden import dequantized
from edgekit.preprocess.frame import Frame
from edgekit.preprocess.postprocessing import (
    KINDS,
    Postprocessing,
    candidates,
    distributions,
    named,
    refuse_second,
)
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

AUTO = "auto"

CLOSE = 1e-5
"""How far a wrapper's probability, or corner of a box, may be from Python's for the same outputs: exponentials differ
in their last bits, and what is stored is float32. Of corners in pixels: of the image's longer side."""

_MOST_FILE = 1 << 20


def read(text: str) -> Postprocessing | None:
    """What ``--postprocess`` says: a kind, ``auto`` (``None``), or a TOML file with the fields of
    :class:`Postprocessing`."""
    if text == AUTO:
        return None
    if text in KINDS:
        return Postprocessing(kind=text)
    if not text.endswith(".toml"):
        raise UnknownNameError("post-processing", text, (AUTO, *KINDS, "FILE.toml"))
    try:
        table = tomllib.loads(files.read(Path(text), most=_MOST_FILE).decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UsageError(
            f"cannot read the post-processing {text}: {e}", hint='a TOML file that begins with kind = "boxes"'
        ) from e
    return structure(Postprocessing, table, where=text)


def resolve(
    stated: Postprocessing | None,
    outputs: Sequence[TensorSpec],
    labelled: TensorSpec | None,
    source: Sequence[Mapping[str, Array]],
) -> Postprocessing | None:
    """The contract with its outputs named and checked; ``None`` where none was stated and nothing has labels.

    ``source`` are outputs of the source for the artifact's golden inputs: they tell whether it ends in a softmax, in
    which case a second one would be wrong.

    Raises :class:`UsageError` for an output that the model does not have, for boxes of another shape, and where
    nothing was stated and the values are neither distributions nor logits.
    """
    if stated is None:
        return None if labelled is None else _guessed(labelled, source)
    found = named(stated, outputs, labelled.name if labelled is not None else "")
    refuse_second(found, source)
    return found


def preferred(asked: Postprocessing | None, own: Postprocessing | None) -> tuple[Postprocessing | None, str]:
    """What ``edgekit package`` was told before what the artifact declares, and a note where they contradict each other.

    A kind alone is about the output that the artifact's contract names.
    """
    if asked is None or own is None:
        return asked if own is None else own, ""
    asked = replace(asked, output=asked.output or own.output)
    if asked == own:
        return asked, ""
    fields = [f for f in asked.__dataclass_fields__ if getattr(asked, f) != getattr(own, f)]
    fields = ["kind"] if "kind" in fields else fields
    told = ", ".join(f"{f} = {getattr(asked, f)!r}" for f in fields)
    declared = ", ".join(f"{f} = {getattr(own, f)!r}" for f in fields)
    return asked, f"post-processing: {told} was asked for and counts; the artifact declares {declared}"


def apply(p: Postprocessing, specs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> Array:
    """What the contract makes of a model's outputs, float32: an array of the scores' shape, or ``[K, 6]`` with class,
    score and the corners x1, y1, x2, y2 as shares of the model's input, the best first."""
    # Outputs may be infinite, or no number: what comes of that is compared as it is, without a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return _applied(p, specs, outputs).astype(np.float32)


def placed(
    p: Postprocessing, specs: Sequence[TensorSpec], outputs: Mapping[str, Array], where: Frame
) -> Array:
    """What a detector found, float32 ``[K, 6]``, its corners in pixels of the image that ``where`` is of."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = _applied(p, specs, outputs)
        return np.concatenate([rows[:, :2], where.in_image(rows[:, 2:])], -1).astype(np.float32)


def _applied(p: Postprocessing, specs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> Array:
    real = {
        s.name: dequantized(s, outputs[s.name]).astype(np.float32).astype(np.float64)
        for s in specs
        if s.name in (p.output, p.boxes)
    }
    if not p.is_boxes:
        return _activated(p.kind, real[p.output])
    table = {name: candidates(p, array) for name, array in real.items()}
    if len({len(rows) for rows in table.values()}) != 1 or table[p.boxes].shape[1] < 4:
        raise DataError(
            f"{p.boxes} and {p.output} do not have as many boxes as scores",
            hint="see the post-processing contract",
        )
    corners, scores = table[p.boxes][:, :4], table[p.output]
    scores = scores[:, 4:] if p.boxes == p.output else scores
    return _suppressed(p, _corners(p, corners), _activated(p.activation, scores))


def _guessed(labelled: TensorSpec, source: Sequence[Mapping[str, Array]]) -> Postprocessing:
    values = [row[labelled.name] for row in source if labelled.name in row]
    if distributions(values):
        return Postprocessing(kind="none", output=labelled.name)
    if values and all(((v >= 0) & (v <= 1)).all() for v in values):
        raise UsageError(
            f"the values of {labelled.name} are between 0 and 1, and do not add up to 1: they may be probabilities of "
            "classes that do not exclude each other, or something else",
            hint="say which: --postprocess none where they are probabilities, sigmoid or softmax where they are not; "
            "or once for all, TorchModel(postprocessing=…) or [postprocessing] in edgekit.toml",
        )
    return Postprocessing(kind="softmax", output=labelled.name)


def _activated(kind: str, values: Array) -> Array:
    if kind == "softmax":
        grown = np.exp(values - values.max(-1, keepdims=True, initial=-np.inf))
        soft: Array = grown / grown.sum(-1, keepdims=True)
        return soft
    # exp of a large number overflows to infinity, of which the sigmoid is 0, as in every language.
    return 1 / (1 + np.exp(-values)) if kind == "sigmoid" else values


def _corners(p: Postprocessing, four: Array) -> Array:
    a, b, c, d = four.T
    if p.box_format == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif p.box_format == "yxyx":
        a, b, c, d = b, a, d, c
    height, width = p.size
    return np.stack([a / width, b / height, c / width, d / height], -1)


def _suppressed(p: Postprocessing, corners: Array, scores: Array) -> Array:
    """Greedy suppression by class; of equal scores the earlier candidate is the better one."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    if p.background >= 0:
        scores[:, p.background] = -np.inf
    best = scores.argmax(-1)
    top = scores[np.arange(len(scores)), best]
    order = np.argsort(-top, kind="stable")
    left = order[top[order] >= p.min_score]
    kept: list[int] = []
    while left.size and len(kept) < p.most:
        first, left = int(left[0]), left[1:]
        kept.append(first)
        worse = (best[left] == best[first]) & (_overlap(corners[left], corners[first]) > p.max_overlap)
        left = left[~worse]
    return np.concatenate([best[kept, None], top[kept, None], corners[kept]], -1)


def _overlap(many: Array, one: Array) -> Array:
    """Intersection over union of each of ``many`` with ``one``; 0 for boxes without an area."""
    low, high = np.maximum(many[:, :2], one[:2]), np.minimum(many[:, 2:], one[2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area = np.clip(many[:, 2:] - many[:, :2], 0, None).prod(-1)
    union = area + float(np.clip(one[2:] - one[:2], 0, None).prod()) - shared
    share: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return share
