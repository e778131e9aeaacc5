"""The post-processing contract: what is done with a model's outputs before an app shows them.

It is declared at the source (``TorchModel(postprocessing=…)``), in ``[postprocessing]`` of edgekit.toml or to
``edgekit package``, recorded in the manifest, and kept by every wrapper; :mod:`edgekit.package.postprocess` has its
arithmetic. Here: what it may say, and whether it is one of this model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.core.structure import structure, to_builtins
from edgekit.errors import ConfigError, UnknownNameError, UsageError
from edgekit.types import Json, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

KINDS = ("none", "softmax", "sigmoid", "boxes")
ACTIVATIONS = ("none", "softmax", "sigmoid")
FORMATS = ("xyxy", "yxyx", "cxcywh")

MOST_BOXES = 1000
"""Of one picture: suppression compares each with every candidate."""

_SUM = 1e-3
_MANY = 16


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

    def to_mapping(self) -> dict[str, Json]:
        """What a manifest records of it: of a kind that gives no boxes nothing is said about them."""
        said: dict[str, Json] = to_builtins(self)
        return said if self.is_boxes else {"kind": self.kind, "output": self.output}


def from_mapping(mapping: Mapping[str, object], *, where: str = "postprocessing") -> Postprocessing | None:
    """The contract from a table of a source, of edgekit.toml or a manifest; ``None`` for an empty one.

    Raises :class:`ConfigError` and :class:`UnknownNameError` for what is none.
    """
    return structure(Postprocessing, mapping, where=where) if mapping else None


def declared(
    mapping: Mapping[str, object], outputs: Sequence[TensorSpec], labels: Sequence[str] = ()
) -> Postprocessing | None:
    """:func:`from_mapping` for a model with these outputs and class names, its output named and checked.

    Raises as :func:`named` does, and :class:`UsageError` where the output has scores of another number of classes than
    there are names.
    """
    contract = from_mapping(mapping)
    if contract is None:
        return None
    labelled = next((o.name for o in outputs if o.shape and o.shape[-1] == len(labels)), "") if labels else ""
    found = named(contract, outputs, labelled)
    width = classes(found, outputs)
    if labels and width not in (None, len(labels)):
        raise UsageError(
            f"postprocessing: {found.output} has scores of {width} classes, and there are {len(labels)} labels",
            hint="name the output that the labels are for with output =, or give a label for every class",
        )
    return found


def named(p: Postprocessing, outputs: Sequence[TensorSpec], labelled: str = "") -> Postprocessing:
    """The contract with its output named: as it says, else the labelled one, else the only one.

    Raises as :func:`check` does.
    """
    name = p.output or labelled or (outputs[0].name if len(outputs) == 1 else "")
    found = replace(p, output=name)
    check(found, outputs)
    return found


def refuse_second(p: Postprocessing, rows: Sequence[Mapping[str, Array]]) -> None:
    """Raise :class:`UsageError` for a softmax or sigmoid of what is probabilities already: ``rows`` are the source's
    outputs for some inputs."""
    activation = p.activation if p.is_boxes else p.kind
    if activation not in ("softmax", "sigmoid"):
        return
    scores = [_scores(p, row[p.output]) for row in rows if p.output in row]
    hint = f'{"activation" if p.is_boxes else "kind"} = "none" (--postprocess none, or leave it out)'
    if distributions(scores):
        effect = "a second one" if activation == "softmax" else "a sigmoid"
        raise UsageError(
            f"{p.output} is the result of a softmax already, and {effect} would flatten it", hint=hint
        )
    # A row of classes may be between 0 and 1 by chance; the candidates of a detector are too many for that.
    if p.is_boxes and scores and all(len(s) >= _MANY and ((s >= 0) & (s <= 1)).all() for s in scores):
        raise UsageError(
            f"the scores in {p.output} are between 0 and 1 already, and a {activation} would flatten them",
            hint=hint,
        )


def _scores(p: Postprocessing, array: Array) -> Array:
    if not p.is_boxes:
        return array
    table = candidates(p, array)
    return table[:, 4:] if p.boxes == p.output else table


def candidates(p: Postprocessing, array: Array) -> Array:
    """``[candidates, numbers of each]`` of an output of a detector."""
    flat: Array = array.reshape(array.shape[-2:])
    return flat.T if p.columns else flat


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
    """How many classes the scores have, ``None`` where that is dynamic."""
    spec = next(o for o in outputs if o.name == p.output)
    width = spec.shape[-2] if p.is_boxes and p.columns else spec.shape[-1]
    if isinstance(width, str):
        return None
    return width - 4 if p.is_boxes and p.boxes == p.output else width


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


def distributions(rows: Sequence[Array]) -> bool:
    """Whether every row of these values of an output is a distribution, as only a softmax gives."""
    values = [np.asarray(row, np.float64) for row in rows]
    return bool(values) and all(
        v.ndim > 0
        and v.shape[-1] > 1
        and ((v >= 0) & (v <= 1)).all()
        and np.abs(v.sum(-1) - 1).max(initial=0) <= _SUM
        for v in values
    )
