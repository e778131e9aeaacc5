"""Adaptive probabilities of binary decisions: counts under several contexts, mixed in the logistic domain.

Mahoney, "Adaptive weighing of context models for lossless data compression" (2005), changed in two
ways. A whole batch of decisions is predicted before any of them is learnt from, so that numpy does the
work; and a context's weight also depends on how often the context was seen. All state is integer, and
the only floating-point operation is one correctly rounded division, so that every machine decodes the
same bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from edgekit.entropy.rans import BitCoder, Ints

STRETCH_LIMIT = 3071
"""Largest |ln(p / (1 - p))|, in units of 1/256."""

_P_MIN = 24
_CONFIDENCE = 8
_WEIGHT_ONE = 1 << 16
_LEARN = 128
"""Of a larger batch only every n-th decision is learnt from: it costs more than the prediction."""


@cache
def squash_table() -> Ints:
    """``round(65536 / (1 + exp(-x / 256)))`` for x in [-3071, 3071], by 160-bit integer arithmetic."""
    # Integers, because exp() of two C libraries may differ in the last bit, and a decoder with it.
    one = 1 << 160
    step, term, k = one, one, 1
    while term:  # exp(-1/256) by its series
        term = term // (256 * k)
        step += -term if k % 2 else term
        k += 1
    table = np.empty(2 * STRETCH_LIMIT + 1, np.int64)
    power = one
    for x in range(STRETCH_LIMIT + 1):  # power = exp(-x/256)
        p = ((one << 17) // (one + power) + 1) >> 1
        table[STRETCH_LIMIT + x], table[STRETCH_LIMIT - x] = p, 65536 - p
        power = power * step >> 160
    return np.clip(table, _P_MIN, 65536 - _P_MIN)


@cache
def stretch_table() -> Ints:
    """The inverse of :func:`squash_table` for probabilities in units of 1/4096."""
    p = np.arange(4096) * 16 + 8
    return np.clip(np.searchsorted(squash_table(), p) - STRETCH_LIMIT, -STRETCH_LIMIT, STRETCH_LIMIT)


@cache
def _confidence_table() -> Ints:
    n = np.arange(256)
    return np.minimum(np.searchsorted([1, 2, 4, 8, 16, 48, 160], n, side="right"), _CONFIDENCE - 1)


class Mixer:
    """``inputs`` context models of ``contexts`` contexts each, mixed with one weight set a ``selector``."""

    def __init__(self, inputs: int, contexts: int, selectors: int, *, limit: int, rate: int) -> None:
        # One array for both: a batch then gathers and scatters once.
        self._counts = np.zeros(inputs * contexts, np.int64)  # seen << 32 | ones
        first = _WEIGHT_ONE * 5 // (4 * inputs)
        self._weights = np.full(selectors * inputs * _CONFIDENCE, first, np.int64)
        self._base = (np.arange(inputs, dtype=np.int64) * contexts)[:, None]
        self._wbase = (np.arange(inputs, dtype=np.int64) * _CONFIDENCE)[:, None]
        self._wstep = inputs * _CONFIDENCE
        self._full, self._rate = ((limit + 1) << 32) - 1, rate
        self._squash, self._stretch = squash_table(), stretch_table()
        # A batch may count far beyond the limit before it is halved.
        observations = np.arange(limit + _LEARN + 1)
        self._confidence = _confidence_table().take(np.minimum(observations, 255))
        self._twice = observations * 2 + 1.6

    def code(self, coder: BitCoder, context: Ints, selector: Ints, bits: Ints | None) -> Ints:
        """Code one decision a column. ``context``: int64 [inputs, n]; ``selector``: int64 [n]."""
        at = context + self._base
        state = self._counts.take(at)
        seen = state >> 32
        state &= 0xFFFFFFFF
        state *= 8192
        state += 3277
        p = (state / self._twice.take(seen)).astype(np.int64)
        st = self._stretch.take(p)
        wat = self._confidence.take(seen)
        wat += selector * self._wstep + self._wbase
        mixed = (self._weights.take(wat) * st).sum(axis=0)
        mixed >>= 16
        np.minimum(mixed, STRETCH_LIMIT, out=mixed)
        np.maximum(mixed, -STRETCH_LIMIT, out=mixed)
        mixed += STRETCH_LIMIT
        final = self._squash.take(mixed)
        bits = coder.code(bits, final)
        count = len(bits)
        if count <= _LEARN:
            self._learn(at, wat, st, bits, final)
        else:
            some = slice(None, None, -(-count // _LEARN))
            self._learn(at[:, some], wat[:, some], st[:, some], bits[some], final[some])
        return bits

    def _learn(self, at: Ints, wat: Ints, st: Ints, bits: Ints, final: Ints) -> None:
        error = (bits << 16) - final
        error *= self._rate
        delta = st * error
        delta >>= 20
        np.add.at(self._weights, wat.ravel(), delta.ravel())
        news = np.empty_like(at)
        news[:] = bits + (1 << 32)
        at = at.ravel()
        np.add.at(self._counts, at, news.ravel())
        state = self._counts.take(at)
        over = (state > self._full).nonzero()[0]
        if len(over):
            state = state[over]
            # Half of both: old observations fade, the ratio stays.
            self._counts[at[over]] = (state >> 33) << 32 | (state & 0xFFFFFFFF) >> 1

    def relax(self, limit: int) -> None:
        """Forget all but ``limit`` observations a context: another tensor begins."""
        seen, ones = self._counts >> 32, self._counts & 0xFFFFFFFF
        over = seen > limit
        self._counts[over] = (limit << 32) | (ones[over] * limit // seen[over])
