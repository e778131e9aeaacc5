"""What counts as a weight, and as an integer one."""

import pytest

from edgekit.graph.weights import integer_share


@pytest.mark.parametrize(
    ("constants", "share"),
    [
        ([(300, "int8"), (100, "float32")], 0.75),
        ([(300, "i4"), (100, "f16")], 0.75),
        ([(100, "uint8"), (10_000, "int32"), (10_000, "int64"), (10_000, "bool")], 1.0),
        ([(7, "bfloat16")], 0.0),
        ([(7, "int64")], None),
        ([], None),
    ],
)
def test_share(constants, share):
    assert integer_share(constants) == share
