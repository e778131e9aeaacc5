"""Interleaved range asymmetric numeral systems (rANS) for binary decisions.

Duda, "Asymmetric numeral systems" (2013); the interleaving follows Giesen, "Interleaved entropy coders"
(2014). ``S`` states of 32 bits take the decisions in turn: decision ``i`` belongs to state ``i mod S``.
Probabilities have 16 bits, words of the stream 16 bits, so that a state takes at most one word a
decision and a batch of states is one handful of numpy operations. One state costs 4 bytes of the stream;
with ``S == 1`` a plain Python loop is quicker than numpy and nothing is lost.

Encoder and decoder offer the same method ``code``: what drives them is written once.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edgekit.errors import ContainerError

Ints: TypeAlias = npt.NDArray[np.int64]

LOW = 1 << 16
"""Lower bound of a normalised state; the upper is ``1 << 32``."""

MAX_STATES = 1 << 14
_BYTES_PER_STATE = 4096
_SCALAR_BELOW = 40


class BitCoder(Protocol):
    """Either direction. ``code(bits, p)`` takes probabilities of a one in (0, 65536) and gives the bits."""

    def code(self, bits: Ints | None, p: Ints) -> Ints:
        """Encode ``bits``, or decode as many as there are probabilities."""
        ...


class Encoder:
    """Collects decisions; rANS is last in, first out, so the work is done in :meth:`finish`."""

    def __init__(self) -> None:
        self._bits: list[Ints] = []
        self._p: list[Ints] = []

    def code(self, bits: Ints | None, p: Ints) -> Ints:
        """Note the decisions ``bits`` with their probabilities ``p``."""
        assert bits is not None
        self._bits.append(bits.astype(np.int8))
        self._p.append(p.astype(np.uint16))
        return bits

    def finish(self) -> bytes:
        """The stream: number of states (2 bytes), the states (4 bytes each), the words (2 bytes each)."""
        if not self._p:
            return np.uint16(0).tobytes()
        bits = np.concatenate(self._bits).astype(np.int64)
        p1 = np.concatenate(self._p).astype(np.int64)
        freq = np.where(bits == 1, p1, LOW - p1)
        start = np.where(bits == 1, 0, p1)
        size = -np.log2(freq / LOW).sum() / 8
        # One state costs 4 bytes: a state for every 4 KB of the stream is a thousandth.
        states = int(min(MAX_STATES, size // _BYTES_PER_STATE))
        if states < _SCALAR_BELOW:
            return _encode_scalar(freq.tolist(), start.tolist())
        return _encode_vector(freq, start, states)


def _encode_scalar(freq: list[int], start: list[int]) -> bytes:
    x, words = LOW, []
    for f, s in zip(reversed(freq), reversed(start), strict=True):
        if x >= f << 16:
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // f << 16) + x % f + s
    body = np.array(words[::-1], dtype="<u2").tobytes()
    return np.array([1], "<u2").tobytes() + np.array([x], "<u4").tobytes() + body


def _encode_vector(freq: Ints, start: Ints, states: int) -> bytes:
    x = np.full(states, LOW, np.int64)
    words: list[Ints] = []
    # Backwards: the decoder takes out last what was put in first.
    for lo in range((len(freq) - 1) // states * states, -1, -states):
        f, s = freq[lo : lo + states], start[lo : lo + states]
        y = x[: len(f)]
        full = y >= f << 16
        words.append((y[full] & 0xFFFF)[::-1])
        y = np.where(full, y >> 16, y)
        quotient = y // f
        x[: len(f)] = (quotient << 16) + (y - quotient * f) + s
    body = np.concatenate(words)[::-1].astype("<u2").tobytes()
    return np.array([states], "<u2").tobytes() + x.astype("<u4").tobytes() + body


class Decoder:
    """Reads the stream of :class:`Encoder`. Raises ``ContainerError`` when the words run out."""

    def __init__(self, data: bytes | memoryview) -> None:
        if len(data) < 2 or len(data) % 2:
            raise _corrupt("an entropy-coded stream is shorter than its header")
        count = int.from_bytes(data[:2], "little")
        head = 2 + 4 * count
        # Before anything of that size is allocated.
        if count > MAX_STATES or head > len(data):
            raise _corrupt("an entropy-coded stream declares more states than it holds")
        self._x = np.frombuffer(data[2:head], "<u4").astype(np.int64)
        self._words = np.frombuffer(data[head:], "<u2").astype(np.int64)
        self._at = 0
        self._turn = 0
        self._scalar = count == 1
        if self._scalar:
            self._state = int(self._x[0])
            self._list = self._words.tolist()

    def code(self, bits: Ints | None, p: Ints) -> Ints:
        """Decode one bit for each probability."""
        del bits
        if self._scalar:
            return self._decode_scalar(p)
        if not len(self._x):
            raise _corrupt("an entropy-coded stream is empty")
        if self._turn + len(p) <= len(self._x):
            return self._decode_vector(p)
        out = np.empty(len(p), np.int64)
        done = 0
        while done < len(p):
            take = min(len(p) - done, len(self._x) - self._turn)
            out[done : done + take] = self._decode_vector(p[done : done + take])
            done += take
        return out

    def bit(self, p: int) -> int:
        """Decode one bit: :meth:`code` without an array around it."""
        if not self._scalar:
            return int(self.code(None, np.array([p], np.int64))[0])
        x = self._state
        low = x & 0xFFFF
        x = p * (x >> 16) + low if low < p else (LOW - p) * (x >> 16) + low - p
        if x < LOW:
            if self._at == len(self._list):
                raise _corrupt("an entropy-coded stream is truncated")
            x = x << 16 | self._list[self._at]
            self._at += 1
        self._state = x
        return int(low < p)

    def finish(self) -> None:
        """Raise unless the stream ends exactly where an encoder's would."""
        x = np.array([self._state]) if self._scalar else self._x
        # An encoder starts every state at LOW, so a decoder that read the right bits ends there.
        if self._at != len(self._words) or np.any(x != LOW):
            raise _corrupt("an entropy-coded stream does not end where it should")

    def _decode_vector(self, p: Ints) -> Ints:
        x = self._x[self._turn : self._turn + len(p)]
        low = x & 0xFFFF
        one = low < p
        # (p or its complement) · high + the distance of ``low`` from the start of the decision's interval
        high = x >> 16
        start = p * ~one
        high *= np.where(one, p, LOW - p)
        np.add(high, low, out=x)
        x -= start
        need = (x < LOW).nonzero()[0]
        if len(need):
            end = self._at + len(need)
            if end > len(self._words):
                raise _corrupt("an entropy-coded stream is truncated")
            x[need] = x[need] << 16 | self._words[self._at : end]
            self._at = end
        self._turn = (self._turn + len(p)) % len(self._x)
        return one.astype(np.int64)

    def _decode_scalar(self, p: Ints) -> Ints:
        x, at, words, out = self._state, self._at, self._list, []
        try:
            for q in p.tolist():
                low = x & 0xFFFF
                if low < q:
                    out.append(1)
                    x = q * (x >> 16) + low
                else:
                    out.append(0)
                    x = (LOW - q) * (x >> 16) + low - q
                if x < LOW:
                    x = x << 16 | words[at]
                    at += 1
        except IndexError as error:
            raise _corrupt("an entropy-coded stream is truncated") from error
        self._state, self._at = x, at
        return np.array(out, np.int64)


def _corrupt(message: str) -> ContainerError:
    return ContainerError(message, hint="the file is damaged: copy or pack it again")
