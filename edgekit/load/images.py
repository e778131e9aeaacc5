"""A folder of pictures as samples: read upright, prepared as the model expects them, labelled by their folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.core.foreign import translated
from edgekit.errors import DataError
from edgekit.load.classes import Classes, numbers
from edgekit.preprocess.declared import completed
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.preprocess.contract import Preprocessing
    from edgekit.types import Array


_MOST_PIXELS = 64_000_000
"""What phones take; prepared in float32, three channels of so many take 768 MB."""


def image_items(
    root: Path,
    paths: Sequence[Path],
    inputs: tuple[TensorSpec, ...],
    preprocessing: Mapping[str, object],
    classes: Classes,
) -> Callable[[], Iterator[object]]:
    """What gives the pictures ``paths`` below ``root`` as the model takes them, labelled by their folders' names.

    Raises :class:`DataError` for a model of several inputs or without preprocessing, and for pictures that are none.
    """
    if len(inputs) != 1:
        raise DataError(
            f"the model has {len(inputs)} inputs, a directory of images feeds one",
            hint="write a callable that yields a dict of inputs",
        )
    if not preprocessing:
        raise DataError(
            f"{root} holds images, but how the model expects them is not known",
            hint="give the preprocessing of training (resize, crop, color, mean, std, layout), "
            "in TorchModel(preprocessing=…) or in edgekit.toml: a wrong one costs accuracy without any error",
        )
    contract = _contract(preprocessing, inputs[0])
    folders = sorted({p.relative_to(root).parts[0] for p in paths if len(p.relative_to(root).parts) > 1})
    labels = numbers(root, folders, classes)

    def items() -> Iterator[object]:
        for path in paths:
            array = contract.apply(read_image(path), inputs[0])
            parts = path.relative_to(root).parts
            yield (array, labels[parts[0]]) if len(parts) > 1 and labels else array

    return items


def read_image(path: Path) -> Array:
    """An image file as uint8 ``[height, width, 3]`` RGB, upright as its EXIF orientation says."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="pip install pillow") from error
    with (
        translated(f"{path} cannot be read as an image", hint="remove or replace the file", kind=DataError),
        Image.open(path) as image,
    ):
        if image.width * image.height > _MOST_PIXELS:
            raise DataError(
                f"{path} has {image.width} x {image.height} pixels, more than {_MOST_PIXELS // 10**6} million",
                hint="make it smaller: models take pictures of some hundred by some hundred pixels",
            )
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _contract(mapping: Mapping[str, object], spec: TensorSpec) -> Preprocessing:
    """The preprocessing contract, size and layout taken from the model's input where it leaves them open."""
    if len(spec.shape) != 4:
        raise DataError(
            f"{spec} is no image input of four axes", hint="write a callable that yields what the model takes"
        )
    contract = completed(mapping, (spec,))
    if contract is None:
        raise DataError(
            f"the preprocessing says nothing about images: {', '.join(mapping)}",
            hint="give resize, crop, color, mean, std and layout, or write a callable that yields inputs",
        )
    return contract
