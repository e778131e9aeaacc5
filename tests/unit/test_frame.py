"""Where an image lies in the model's input: a patch that is drawn into an image is found again where it was."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.preprocess.contract import Preprocessing
from edgekit.preprocess.frame import frame

CONTRACTS = (
    Preprocessing(resize=(60, 90)),
    Preprocessing(resize=(90, 60), fit="pad", pad_value=114),
    Preprocessing(resize=(64, 64), fit="pad"),
    Preprocessing(resize=(80, 90), fit="pad", crop=(71, 76)),
    Preprocessing(resize=64, crop=(57, 50)),
    Preprocessing(resize=64, crop=(57, 51), crop_rounding="half-even"),
    Preprocessing(crop=(60, 55)),
)
SIZES = ((100, 70), (70, 100), (81, 81), (61, 200))


def seen(pixels: np.ndarray) -> np.ndarray:
    """The corners of the bright patch in an image, in its pixels: half of its weight counts."""
    bright = pixels[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_patch_is_found_where_it_was_drawn(contract: Preprocessing, height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    # In the middle, so that no crop takes of it, and not in its centre, so that nothing cancels out.
    patch = np.array([width // 2 - 9, height // 2 - 12, width // 2 + 13, height // 2 + 8], float)
    left, top, right, bottom = patch.astype(int)
    image[top:bottom, left:right] = 255
    fed = contract.fit_image(image)
    if contract.pad_value:
        fed = np.where(fed == contract.pad_value, 0, fed)
    shares = seen(fed) / np.tile([contract.size[1], contract.size[0]], 2)
    where = frame(contract, height, width)
    found = where.in_image(shares[None])[0]
    # Half a pixel of the coarser of the two, on either side.
    step = np.array([width / where.width, height / where.height] * 2).clip(1)
    assert (np.abs(found - patch) <= step).all(), (found, patch)


def test_by_hand() -> None:
    # 100 wide and 50 high in 200 x 200: twice as large, 50 pixels below the upper edge.
    letterbox = frame(Preprocessing(resize=(200, 200), fit="pad"), 50, 100)
    corners = np.array([[0.25, 0.5, 0.75, 0.75], [0, 0, 1, 1], [-1, 0.24, 2, 0.3]])
    np.testing.assert_allclose(
        letterbox.in_image(corners), [[25, 25, 75, 50], [0, 0, 100, 50], [0, 0, 100, 5]]
    )
    # The shorter edge 40 becomes 20, so 100 becomes 50; of these the middle 16 x 16 begin at 17 and 2.
    cropped = frame(Preprocessing(resize=20, crop=(16, 16)), 40, 100)
    np.testing.assert_allclose(cropped.in_image(np.array([[0, 0, 0.5, 1]])), [[34, 4, 50, 36]])


def test_an_image_that_is_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(DataError, match="smaller than the crop"):
        frame(Preprocessing(crop=(8, 8)), 7, 20)
