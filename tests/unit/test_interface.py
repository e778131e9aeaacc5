"""What a manifest says of inputs and outputs is held against what the runtime tells of the file."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.artifact.interface import Vector, _differences, differences
from edgekit.devices.execute import Ports
from edgekit.devices.wire import Port
from edgekit.types import TensorSpec


def spec(shape=(1, 4), dtype="float32", scale=None, zero_point=None):
    return TensorSpec(name="x", dtype=dtype, shape=shape, scale=scale, zero_point=zero_point)


def port(shape=(1, 4), dtype="float32", scale=None, zero_point=None, names=("x",)):
    return Port(names=names, dtype=dtype, shape=shape, scale=scale, zero_point=zero_point)


@pytest.mark.parametrize(
    ("said", "file", "seen"),
    [
        (spec(), port(), (1, 4)),
        (spec(("batch", 4)), port((None, 4)), (3, 4)),
        (spec((3, 4)), port((None, 4)), (3, 4)),
        (spec(), port(names=("serving_default_x", "x")), (1, 4)),
        (
            spec(dtype="int8", scale=0.1, zero_point=-3),
            port(dtype="int8", scale=0.1000000015, zero_point=-3),
            (1, 4),
        ),
        (
            spec(dtype="int8", scale=0.1, zero_point=-3),
            port(dtype="int8"),
            (1, 4),
        ),  # a runtime without scales
    ],
)
def test_what_fits(said, file, seen):
    assert not list(_differences(said, file, seen))


@pytest.mark.parametrize(
    ("said", "file", "seen"),
    [
        (spec((1, 5)), port(), (1, 4)),
        (spec(("batch", 4)), port(), (1, 4)),
        (spec((2, 4)), port((None, 4)), (1, 4)),
        (spec((4,)), port(), (1, 4)),
        (spec(), port(), (1, 4, 1)),
        (spec(dtype="float16"), port(), (1, 4)),
        (spec(), port(names=("y",)), (1, 4)),
        (spec(dtype="int8"), port(dtype="int8", scale=0.1, zero_point=0), (1, 4)),
        (spec(scale=0.5, zero_point=7), port(), (1, 4)),  # floats have none
        (spec(dtype="int8", scale=0.1, zero_point=200), port(dtype="int8"), (1, 4)),
        (spec(dtype="int8", scale=float("nan"), zero_point=0), port(dtype="int8"), (1, 4)),
        (spec(dtype="int8", scale=-0.1, zero_point=0), port(dtype="int8"), (1, 4)),
        (
            spec(dtype="int8", scale=0.2, zero_point=0),
            port(dtype="int8", scale=0.1, zero_point=0),
            (1, 4),
        ),
        (
            spec(dtype="int8", scale=0.1, zero_point=1),
            port(dtype="int8", scale=0.1, zero_point=0),
            (1, 4),
        ),
    ],
)
def test_what_does_not(said, file, seen):
    assert list(_differences(said, file, seen))


def test_only_what_the_runtime_tells_of_is_compared():
    vector = Vector(inputs={"x": np.zeros((1, 4), "f")}, outputs={})
    wrong = Ports(inputs={"x": port((1, 5))}, outputs={})
    assert list(differences([spec()], [], (), wrong, vector))
    assert not list(differences([spec()], [], (), Ports(inputs={}, outputs={}), vector))
