"""Where an image lies in the model's input, and so where in the image what a model finds lies.

The wrappers in the app packages state the same arithmetic: boxes are given in the pixels of the picture that the app
has, whatever the contract does to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess.contract import Preprocessing, offset

if TYPE_CHECKING:
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The rectangle that an image of the size ``image`` fills in the model's input of ``size``, in pixels of that.

    Sizes are height and width. It begins above or left of the input where the contract crops, and is smaller than the
    input where it pads.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    image: tuple[int, int]

    def in_image(self, corners: Array) -> Array:
        """Corners ``[K, 4]`` (left, top, right, bottom as shares of the model's input) in the image's pixels, not
        beyond its edges."""
        height, width = self.image
        x = (corners[:, 0::2] * self.size[1] - self.left) * (width / self.width)
        y = (corners[:, 1::2] * self.size[0] - self.top) * (height / self.height)
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], -1)


def frame(contract: Preprocessing, height: int, width: int) -> Frame:
    """Where an image of this size lies. Raises :class:`DataError` for one that the contract cannot crop."""
    scaled = contract.scaled_size(height, width)
    whole, top, left = scaled, 0, 0
    if contract.fit == "pad" and isinstance(contract.resize, tuple):
        whole = contract.resize
        top, left = (whole[0] - scaled[0]) // 2, (whole[1] - scaled[1]) // 2
    if contract.crop is not None:
        margins = whole[0] - contract.crop[0], whole[1] - contract.crop[1]
        if min(margins) < 0:
            raise DataError(
                f"an image of {whole[0]}x{whole[1]} is smaller than the crop of {contract.crop[0]}x{contract.crop[1]}",
                hint="use larger images, or resize before cropping",
            )
        top, left = (t - offset(m, contract.crop_rounding) for t, m in zip((top, left), margins, strict=True))
    return Frame(
        top=top, left=left, height=scaled[0], width=scaled[1], size=contract.size, image=(height, width)
    )
