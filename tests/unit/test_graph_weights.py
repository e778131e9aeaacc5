"""What counts as a weight, and as an integer one."""

import pytest

from edgekit.graph.weights import FREE, integer_share


@pytest.mark.parametrize(
    ("constants", "share"),
    [
        ([(3000, "int8"), (1000 + FREE, "float32")], 0.75),
        ([(3000, "i4"), (1000 + FREE, "f16")], 0.75),
        ([(100, "uint8"), (10_000, "int32"), (10_000, "int64"), (10_000, "bool")], 1.0),
        ([(FREE + 7, "bfloat16")], 0.0),
        ([(1, "int8"), (FREE, "float32")], 1.0),
        ([(FREE, "float32")], None),
        ([(7, "int64")], None),
        ([], None),
    ],
)
def test_share(constants, share):
    assert integer_share(constants) == share
