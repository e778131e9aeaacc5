"""Bookkeeping of axes: what a view and a grouped reshape mean, checked with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert")

from edgekit.backends.tflite.ir import Quant, Tensor
from edgekit.backends.tflite.registry import op
from edgekit.backends.tflite.view import View, compose, inverse, reshape_groups, reshape_order

PERMS = st.integers(1, 5).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.permutations(range(n))))


@given(PERMS)
def test_compose_is_transpose_of_a_view(perms):
    perm, then = perms
    x = np.arange(math.prod(range(2, 2 + len(perm)))).reshape(range(2, 2 + len(perm)))
    stored = np.transpose(x, perm)
    seen = np.transpose(stored, inverse(compose(perm, then)))
    np.testing.assert_array_equal(seen, np.transpose(x, then))


def test_view_of_a_constant_reads_in_onnx_order():
    x = np.arange(24).reshape(2, 3, 4)
    view = View(Tensor((2, 4, 3), x.dtype, data=np.transpose(x, (0, 2, 1))), (0, 2, 1))
    assert view.shape == (2, 3, 4)
    assert view.position(-1) == 1
    np.testing.assert_array_equal(view.const, x)


@st.composite
def reshapes(draw):
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))

    def cut():
        shape, product = [], 1
        for f in factors:
            product *= f
            if draw(st.booleans()):
                shape.append(product)
                product = 1
        return (*shape, product)

    before, after = cut(), cut()
    return before, after, draw(st.permutations(range(len(before))))


@given(reshapes())
def test_reshape_in_any_order(case):
    """Transposing to the needed order and reshaping there gives the reshaped array in the result's order."""
    before, after, perm = case
    x = np.arange(math.prod(before)).reshape(before)
    needed, result, now = reshape_order(tuple(perm), before, reshape_groups(before, after))
    there = np.transpose(x, needed).reshape([after[a] for a in result])
    np.testing.assert_array_equal(there, np.transpose(x.reshape(after), result))
    if now:
        stored = np.transpose(x, perm).reshape(there.shape)
        np.testing.assert_array_equal(stored, there)


def test_flattened_spatial_axes_need_no_move():
    _, result, now = reshape_order((0, 2, 3, 1), (1, 8, 4, 4), reshape_groups((1, 8, 4, 4), (1, 8, 16)))
    assert now
    assert result == (0, 2, 1)


@given(st.integers(0, 255))
def test_quantization_saturates_and_rounds_to_even(seed):
    quant = Quant(np.asarray([0.5, 0.25], np.float32), np.asarray([0, 3]), 1)
    real = np.random.default_rng(seed).normal(size=(4, 2)).astype(np.float32) * 40
    stored = quant.quantize(real, np.dtype(np.int8))
    inside = (stored > -128) & (stored < 127)
    np.testing.assert_array_less(np.abs(quant.dequantize(stored) - real)[inside], 0.2501)


def test_an_operator_twice_names_both_owners():
    import edgekit.backends.tflite.ops  # noqa: F401

    with pytest.raises(ValueError, match=r"Conv.*registered twice.*convolution.conv.*test_an_operator_twice"):
        op("Conv", since=1)(lambda g, x: x)
