"""Contracts that a source, a project or a manifest declares: a table, or a hub's file and a table that overrides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from edgekit.core.files import is_within
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, SourceError
from edgekit.preprocess import readers
from edgekit.preprocess.contract import DTYPES, Preprocessing, no_input
from edgekit.types import TensorSpec


def from_mapping(mapping: Mapping[str, object], *, base: Path | None = None) -> Preprocessing | None:
    """The contract from a table of edgekit.toml or a manifest; ``None`` for an empty one.

    ``{"huggingface": "DIR"}`` reads a processor's ``preprocessor_config.json`` and ``{"timm": "FILE"}`` a
    timm ``config.json``; the table's other keys override what was read. ``base`` is the folder of an artifact, which
    anybody may have written: the file has to be in it. Without one the name is the user's own.

    Raises:
        ConfigError: a value is impossible, or the file asks for something that the contract cannot say.
        SourceError: the file is not in ``base``, or is no file.
    """
    if not mapping:
        return None
    own = {k: v for k, v in mapping.items() if k not in readers.READERS}
    for kind, reader in readers.READERS.items():
        if kind in mapping:
            path = (base or Path.cwd()) / str(mapping[kind])
            if base is not None:
                _refuse_outside(path, kind, base)
            return structure(Preprocessing, reader(path).to_mapping() | own, where="preprocessing")
    return structure(Preprocessing, own, where="preprocessing")


def _refuse_outside(path: Path, kind: str, base: Path) -> None:
    folder = base.resolve()
    # Only what is inside is looked at, and the file in a folder may be a link again.
    inside = is_within(path, folder)
    file = readers.file_in(path, kind) if inside else path
    if not inside or not is_within(file, folder) or _is_special(file):
        raise SourceError(
            f"preprocessing: {kind} names what is no file in {base}",
            hint="do not trust who wrote this: an artifact's contract is in its own folder",
        )


def _is_special(file: Path) -> bool:
    """Whether there is something else of this name than a file."""
    try:
        return file.exists() and not file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return True


def completed(
    mapping: Mapping[str, object], inputs: Sequence[TensorSpec], *, base: Path | None = None
) -> Preprocessing | None:
    """:func:`from_mapping`, with size, layout and grey taken from the model's input where the table, which
    then names no file either, leaves them open.

    ``None`` for a table that is not about images (a tokenizer, say), and for a model without an input of four
    axes. Raises as :func:`from_mapping` does, and :class:`ConfigError` for an input that the model does not have.
    """
    keys = _keys()
    input_name = mapping.get("input")
    if keys & mapping.keys() and input_name and input_name not in {s.name for s in inputs}:
        raise no_input(str(input_name), inputs)
    spec = next((s for s in inputs if len(s.shape) == 4 and input_name in (None, "", s.name)), None)
    if spec is None or not keys & mapping.keys():
        return None
    if readers.READERS.keys() & mapping.keys():
        return from_mapping(mapping, base=base)
    shape = tuple(d if isinstance(d, int) else 0 for d in spec.shape)
    channels_last = spec.layout == "NHWC" or (shape[3] in (1, 3) and shape[1] not in (1, 3))
    layout = str(mapping.get("layout", "NHWC" if channels_last else "NCHW"))
    height, width = shape[2:] if layout == "NCHW" else shape[1:3]
    channels = shape[1] if layout == "NCHW" else shape[3]
    inferred: dict[str, object] = {"layout": layout, "color": "gray" if channels == 1 else "rgb"}
    if height and width and not ({"resize", "crop"} & mapping.keys()):
        inferred["resize"] = [height, width]
    return from_mapping(inferred | dict(mapping), base=base)


def fitting(mapping: Mapping[str, object], inputs: Sequence[TensorSpec]) -> Preprocessing | None:
    """:func:`completed` for the model as its source has it, which it must give what that takes.

    Raises:
        ConfigError: as :func:`completed`; or the table is a contract, and the model has no image input, or one of
            another size, layout, dtype or number of channels than the table states.
    """
    contract = completed(mapping, inputs)
    if contract is None:
        if mapping and mapping.keys() <= _keys():
            raise ConfigError(
                f"preprocessing: {', '.join(mapping)} is said of an image, and the model takes none: "
                f"{', '.join(map(str, inputs))}",
                hint="leave it out for this model; an image is an input of four axes",
            )
        return None
    images = [s for s in inputs if len(s.shape) == 4 and contract.input in ("", s.name)]
    wrong = [_misfits(contract, mapping, spec) for spec in images]
    if all(wrong):
        raise ConfigError(
            f"preprocessing: {', '.join(wrong[0])} does not fit the model: it gives {contract.dtype}"
            f"{list(contract.shape)}, the model takes {', '.join(map(str, images))}",
            hint="state the preprocessing of the exported model; what is left out is taken from the model's input",
        )
    return contract


def _misfits(contract: Preprocessing, mapping: Mapping[str, object], spec: TensorSpec) -> tuple[str, ...]:
    """The keys, with their values, that give something else than ``spec``; the batch is any."""
    own, other = (_misfits_as(contract, layout, spec) for layout in _both(contract.layout))
    said = {k: v for k, v in own.items() if k in mapping or readers.READERS.keys() & mapping.keys()}
    if "layout" not in mapping:
        said = min(own, other, key=len)
    elif own and (not said or len(other) < len(own)):
        said = {"layout": contract.layout, **{k: v for k, v in other.items() if k in said}}
    wrong = tuple(f"{key} = {value!r}" for key, value in said.items())
    if "dtype" in mapping and spec.dtype in DTYPES and spec.dtype != contract.dtype:
        wrong = (*wrong, f"dtype = {contract.dtype!r}")
    return wrong


def _both(layout: str) -> tuple[str, str]:
    return layout, "NHWC" if layout == "NCHW" else "NCHW"


def _misfits_as(contract: Preprocessing, layout: str, spec: TensorSpec) -> dict[str, object]:
    """The keys for whose values ``spec``, read in this layout, has no place."""
    _, *axes = spec.shape
    channels, *size = axes if layout == "NCHW" else (axes[2], *axes[:2])
    wrong: dict[str, object] = {}
    if not _is(channels, contract.channels):
        wrong["color"] = contract.color
    if not all(map(_is, size, contract.size)):
        wrong["resize" if contract.crop is None else "crop"] = list(contract.size)
    return wrong


def _is(axis: int | str, size: int) -> bool:
    return isinstance(axis, str) or axis == size


def _keys() -> set[str]:
    return {f.name for f in fields(Preprocessing)} | readers.READERS.keys()
