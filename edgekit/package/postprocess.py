"""The post-processing contract: how a model's outputs become what an app shows, the same in every language.

``classify()`` of an app package gives probabilities. Whether the model ends in a softmax is nothing that an app
developer X in double on the outputs' real values rounded to float32; :func:`apply` is what wrappers are compared with.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.core import files
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, DataError, UnknownNameError, UsageError
from edgekit.package.golden import dequantized
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

KINDS = ("none", "softmax", "sigmoid", "boxes")
ACTIVATIONS = ("none", "softmax", "sigmoid")
FORMATS = ("xyxy", "yxyx", "cxcywh")
AUTO = "auto"

CLOSE = 1e-5
"""How far a wrapper's probability, or corner of a box, may be from Python's for the same outputs: exponentials differ
in their last bits, and what is stored is float32."""

MOST_BOXES = 1000
"""Of one picture: suppression compares each with every candidate."""

_MOST_FILE = 1 << 20
_SUM = 1e-3


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What is done with the outputs.

    Attributes:
        kind: ``softmax`` or ``sigmoid`` over the last axis of ``output``; ``none`` where its values are what is to be
            shown (they are probabilities already, or were never meant to be); ``boxes`` for a detector.
        output: the output with the scores. Empty takes the labelled one, or the only one.
        boxes: the output with the corners, ``[1, N, 4]`` beside scores of ``[1, N, classes]``. The same as ``output``
            where one tensor has both: four numbers of a box, then its scores.
        box_format: the four numbers: corners ``xyxy`` or ``yxyx``, or centre and size ``cxcywh``.
        columns: candidates are the last axis (``[1, 4, N]``) instead of the one before.
        activation: of the scores of ``boxes``.
        background: the class that stands for nothing, or -1.
        size: height and width that the numbers are divided by: those of the model's input where they are pixels.
        min_score: candidates with less are dropped.
        max_overlap: a box whose intersection over union with a better one of its class is more is dropped.
        most: boxes at most.
    """

    kind: str
    output: str = ""
    boxes: str = ""
    box_format: str = "xyxy"
    columns: bool = False
    activation: str = "none"
    background: int = -1
    size: tuple[float, float] = (1.0, 1.0)
    min_score: float = 0.25
    max_overlap: float = 0.45
    most: int = 100

    def __post_init__(self) -> None:
        for what, value, known in (
            ("post-processing", self.kind, KINDS),
            ("activation", self.activation, ACTIVATIONS),
            ("form of boxes", self.box_format, FORMATS),
        ):
            if value not in known:
                raise UnknownNameError(what, value, known)
        shares = 0 <= self.min_score <= 1 and 0 <= self.max_overlap <= 1
        if not (shares and 1 <= self.most <= MOST_BOXES and self.background >= -1):
            raise ConfigError(
                f"postprocessing: min_score and max_overlap are shares, most is 1 to {MOST_BOXES}, background a class",
                hint="min_score = 0.25, max_overlap = 0.45, most = 100, background = 0",
            )
        if not all(0.001 <= s <= 1e6 for s in self.size):
            raise ConfigError(
                "postprocessing: size is 0.001 to 1,000,000",
                hint="height and width that the boxes' numbers are divided by: in pixels, or 1 where they are shares",
            )

    @property
    def is_boxes(self) -> bool:
        """Whether the result is boxes instead of a value for every class."""
        return self.kind == "boxes"


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
    name = stated.output or (labelled.name if labelled is not None else "")
    if not name and len(outputs) == 1:
        name = outputs[0].name
    given = {f: getattr(stated, f) for f in stated.__dataclass_fields__} | {"output": name}
    found = Postprocessing(**given)
    check(found, outputs)
    if found.kind == "softmax" and _distributions(source, name):
        raise UsageError(
            f"{name} is the result of a softmax already, and a second one would flatten it",
            hint="--postprocess none (or leave it out)",
        )
    return found


def check(p: Postprocessing, outputs: Sequence[TensorSpec]) -> None:
    """Raise :class:`UsageError` unless the contract speaks of these outputs, and of their shapes."""
    by_name = {o.name: o for o in outputs}
    for wanted in (p.output, *([p.boxes] if p.is_boxes else [])):
        if wanted not in by_name:
            raise UnknownNameError("output", wanted, by_name, where="postprocessing")
    if p.is_boxes:
        _check_boxes(p, by_name)
    elif not by_name[p.output].shape:
        raise UsageError(f"postprocessing: {p.output} is one number", hint="name the output with the scores")


def classes(p: Postprocessing, outputs: Sequence[TensorSpec]) -> int | None:
    """How many classes the scores of boxes have, ``None`` where that is dynamic."""
    spec = next(o for o in outputs if o.name == p.output)
    width = spec.shape[-2] if p.columns else spec.shape[-1]
    if isinstance(width, str):
        return None
    return width - 4 if p.boxes == p.output else width


def apply(p: Postprocessing, specs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> Array:
    """What the contract makes of a model's outputs, float32: an array of the scores' shape, or ``[K, 6]`` with class,
    score and the corners x1, y1, x2, y2 as shares of the model's input, the best first."""
    # Outputs may be infinite, or no number: what comes of that is compared as it is, without a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return _applied(p, specs, outputs).astype(np.float32)


def _applied(p: Postprocessing, specs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> Array:
    real = {
        s.name: dequantized(s, outputs[s.name]).astype(np.float32).astype(np.float64)
        for s in specs
        if s.name in (p.output, p.boxes)
    }
    if not p.is_boxes:
        return _activated(p.kind, real[p.output])
    table = {name: _candidates(p, array) for name, array in real.items()}
    if len({len(rows) for rows in table.values()}) != 1 or table[p.boxes].shape[1] < 4:
        raise DataError(
            f"{p.boxes} and {p.output} do not have as many boxes as scores",
            hint="see the post-processing contract",
        )
    corners, scores = table[p.boxes][:, :4], table[p.output]
    scores = scores[:, 4:] if p.boxes == p.output else scores
    return _suppressed(p, _corners(p, corners), _activated(p.activation, scores))


def _guessed(labelled: TensorSpec, source: Sequence[Mapping[str, Array]]) -> Postprocessing:
    values = [row[labelled.name] for row in source]
    if _distributions(source, labelled.name):
        return Postprocessing(kind="none", output=labelled.name)
    if values and all(((v >= 0) & (v <= 1)).all() for v in values):
        raise UsageError(
            f"the values of {labelled.name} are between 0 and 1, and do not add up to 1: they may be probabilities of "
            "classes that do not exclude each other, or something else",
            hint="say which: --postprocess none where they are probabilities, sigmoid or softmax where they are not",
        )
    return Postprocessing(kind="softmax", output=labelled.name)


def _distributions(source: Sequence[Mapping[str, Array]], name: str) -> bool:
    """Whether every row of the output is a distribution, as only a softmax gives."""
    values = [np.asarray(row[name], np.float64) for row in source if name in row]
    return bool(values) and all(
        v.ndim > 0
        and v.shape[-1] > 1
        and ((v >= 0) & (v <= 1)).all()
        and np.abs(v.sum(-1) - 1).max(initial=0) <= _SUM
        for v in values
    )


def _check_boxes(p: Postprocessing, by_name: Mapping[str, TensorSpec]) -> None:
    boxes, scores = by_name[p.boxes], by_name[p.output]
    ranks = all(len(s.shape) in (2, 3) and (len(s.shape) == 2 or s.shape[0] == 1) for s in (boxes, scores))
    width = boxes.shape[-2 if p.columns else -1] if ranks else 0
    fits = width == 4 if p.boxes != p.output else isinstance(width, int) and width > 4
    count = classes(p, tuple(by_name.values())) if ranks else 0
    if not fits or count is None or not max(p.background, 0) < count:
        wanted = "4 + classes" if p.boxes == p.output else "4"
        raise UsageError(
            f"postprocessing: boxes are [1, N, {wanted}] ([1, {wanted}, N] with columns = true), and they are {boxes}"
            + ("" if p.boxes == p.output else f", scores {scores}"),
            hint="name outputs with boxes = and output =, their form with columns =, a class with background =",
        )


def _activated(kind: str, values: Array) -> Array:
    if kind == "softmax":
        grown = np.exp(values - values.max(-1, keepdims=True, initial=-np.inf))
        soft: Array = grown / grown.sum(-1, keepdims=True)
        return soft
    # exp of a large number overflows to infinity, of which the sigmoid is 0, as in every language.
    return 1 / (1 + np.exp(-values)) if kind == "sigmoid" else values


def _candidates(p: Postprocessing, array: Array) -> Array:
    flat: Array = array.reshape(array.shape[-2:])
    return flat.T if p.columns else flat


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
