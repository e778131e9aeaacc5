"""What ``auto`` measures of a candidate."""

from __future__ import annotations

import numpy as np

from edgekit.quantize.auto import snr


def test_answers_of_another_length_are_other_answers():
    """A decoder that stops by what it says: quantized, it stops elsewhere."""
    steps = np.ones((1, 48, 4), np.float32)
    assert abs(snr([{"y": steps}], [{"y": np.ones((1, 41, 4), np.float32)}])) < 1e-6
    assert snr([{"y": steps}], [{"y": steps}]) > 100
