"""Context mixing of bytes, for what is not a tensor: graph structure, names, JSON, XML.

Seven models (orders 0 to 4, order 6, and the longest match) of one bit each, mixed as in
:mod:`edgekit.entropy.mixing` (Mahoney 2005, "lpaq"). Plain Python integers, about 30 microseconds a
byte: meant for tens of kilobytes.
"""

from __future__ import annotations

import numpy as np

from edgekit.entropy.mixing import STRETCH_LIMIT, squash_table, stretch_table
from edgekit.entropy.rans import Decoder, Encoder

MAX_SIZE = 1 << 18
_ORDERS = (0, 1, 2, 3, 4, 6)
_INPUTS = len(_ORDERS) + 1
_MIN_MATCH = 5
_RATES = (*tuple(65536 * 2 // (2 * n + 3) for n in range(32)), 65536 // 40)


class _Model:
    """Prediction and learning, one bit at a time."""

    def __init__(self) -> None:
        self._squash = [int(v) for v in squash_table()]
        self._stretch = [int(v) for v in stretch_table()]
        self._tables: list[dict[int, list[int]]] = [{} for _ in _ORDERS]  # context -> [p, seen]
        self._weights = [[24000] * _INPUTS for _ in range(256 * 3)]
        self._match_seen = [[49152, 0] for _ in range(32 * 2)]
        self._history = bytearray()
        self._last: dict[bytes, int] = {}
        self._match = 0
        self._length = 0
        self._keys = [0] * len(_ORDERS)
        self._begin_byte()

    def _begin_byte(self) -> None:
        h = self._history
        for i, order in enumerate(_ORDERS):
            self._keys[i] = int.from_bytes(h[len(h) - order :], "little") << 8 if order <= len(h) else -1
        self._node = 1

    def predict(self) -> int:
        """Probability of a one, 16 bits."""
        node, stretch = self._node, self._stretch
        self._slots = []
        st = []
        for table, key in zip(self._tables, self._keys, strict=True):
            slot = table.get(key | node) if key >= 0 else None
            if slot is None:
                slot = [32768, 0]
                if key >= 0:
                    table[key | node] = slot
            self._slots.append(slot)
            st.append(stretch[slot[0] >> 4] if slot[1] else 0)
        self._expect = -1
        if self._length:
            byte = self._history[self._match] | 256
            bits = node.bit_length() - 1
            if byte >> (8 - bits) == node:
                self._expect = byte >> (7 - bits) & 1
                slot = self._match_seen[min(self._length, 31) * 2]
                s = stretch[slot[0] >> 4]
                st.append(s if self._expect else -s)
                self._slots.append(slot)
        if self._expect < 0:
            st.append(0)
        confidence = 0 if self._expect < 0 else 1 if self._length < 16 else 2
        self._st = st
        self._w = self._weights[confidence * 256 + node]
        dot = sum(w * s for w, s in zip(self._w, st, strict=True)) >> 16
        self._p = self._squash[max(-STRETCH_LIMIT, min(STRETCH_LIMIT, dot)) + STRETCH_LIMIT]
        return self._p

    def learn(self, bit: int) -> None:
        """Take in the bit that :meth:`predict` predicted."""
        error = ((bit << 16) - self._p) * 10
        w = self._w
        for i, s in enumerate(self._st):
            w[i] += s * error >> 20
        if self._expect >= 0:
            slot = self._slots.pop()
            self._adapt(slot, int(bit == self._expect))
        for slot in self._slots:
            self._adapt(slot, bit)
        self._node = self._node << 1 | bit
        if self._node >= 256:
            self._end_byte(self._node & 255)

    @staticmethod
    def _adapt(slot: list[int], bit: int) -> None:
        p, n = slot
        slot[0] = p + (((bit << 16) - bit - p) * _RATES[n] >> 16)
        # Then the rate stays: the bytes of a file change their nature on the way.
        if n < 30:
            slot[1] = n + 1

    def _end_byte(self, byte: int) -> None:
        h = self._history
        if self._length and h[self._match] == byte:
            self._length += 1
            self._match += 1
        else:
            self._length = 0
        h.append(byte)
        if len(h) >= _MIN_MATCH:
            key = bytes(h[-_MIN_MATCH:])
            if not self._length and key in self._last:
                self._match = self._last[key]
                self._length = 1
            self._last[key] = len(h)
        self._begin_byte()


def encode(data: bytes) -> bytes:
    """Code at most ``MAX_SIZE`` bytes."""
    model, p, bits = _Model(), [], []
    for byte in data:
        for shift in range(7, -1, -1):
            bit = byte >> shift & 1
            p.append(model.predict())
            bits.append(bit)
            model.learn(bit)
    coder = Encoder()
    if p:
        coder.code(np.array(bits, np.int64), np.array(p, np.int64))
    return coder.finish()


def decode(data: bytes | memoryview, size: int) -> bytes:
    """The ``size`` bytes that :func:`encode` was given."""
    coder, model, out = Decoder(data), _Model(), bytearray()
    for _ in range(size):
        node = 1
        while node < 256:
            bit = coder.bit(model.predict())
            model.learn(bit)
            node = node << 1 | bit
        out.append(node & 255)
    coder.finish()
    return bytes(out)
