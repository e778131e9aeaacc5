"""Canonical Huffman codes, decoded by numpy: many streams side by side, one table look-up a symbol.

Huffman, "A method for the construction of minimum-redundancy codes" (1952); lengths above the limit are mended as in
Kraft's inequality demands, the cheapest first. The symbols are cut into runs of equal length, each with a stream of
its own that starts at a byte: all streams advance together, so that a symbol costs a few nanoseconds although no
line of C was written for it. A symbol takes at least one bit: on sparse tensors the context model is far smaller.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from edgekit.entropy.rans import Ints
from edgekit.entropy.wire import Reader, Writer, malformed

LIMIT = 15
"""Longest code: the decoder's table has ``2 ** LIMIT`` entries at most."""

MAX_STREAMS = 4096
_SYMBOLS_PER_STREAM = 256


def encode(symbols: Ints, alphabet: int) -> bytes:
    """Code ``symbols`` in ``[0, alphabet)``, with the code's lengths in front. ``alphabet`` ≤ ``2 ** LIMIT``."""
    lengths = code_lengths(np.bincount(symbols, minlength=alphabet))
    codes = _codes(lengths)
    streams = max(1, min(MAX_STREAMS, len(symbols) // _SYMBOLS_PER_STREAM))
    each = -(-len(symbols) // streams)
    out = Writer()
    _write_lengths(out, lengths)
    out.uint(streams)
    bodies = [
        _bits(codes[run], lengths[run]) for run in np.split(symbols, np.arange(each, len(symbols), each))
    ]
    bodies += [b""] * (streams - len(bodies))
    for body in bodies:
        out.uint(len(body))
    out.data += b"".join(bodies)
    return bytes(out.data)


def decode(data: bytes | memoryview, count: int, alphabet: int) -> Ints:
    """The ``count`` symbols that :func:`encode` was given. Raises ``ContainerError``.

    Memory: about twelve bytes a symbol and twelve a coded byte.
    """
    r = Reader(data)
    lengths = _read_lengths(r, alphabet)
    streams = r.uint(min(MAX_STREAMS, max(1, count)))
    if not streams:
        raise malformed("a Huffman code without a stream")
    sizes = np.array([r.uint(r.left) for _ in range(streams)], np.int64)
    if int(sizes.sum()) != r.left:
        raise malformed("the streams of a Huffman code do not add up")
    each = -(-count // streams)
    wanted = np.clip(count - np.arange(streams) * each, 0, each)
    if np.any(wanted > 8 * sizes):
        raise malformed("a Huffman stream is shorter than its symbols")
    # In bits.
    ends = np.cumsum(sizes) * 8
    out, at = _decode_streams(r.take(r.left), (ends - sizes * 8, ends), wanted, lengths)
    if np.any(at > ends) or np.any(ends - at >= 8):
        raise malformed("a Huffman stream does not end where it should")
    return out.T.reshape(-1)[:count].astype(np.int64)


def code_lengths(histogram: Ints) -> Ints:
    """Bits of each symbol's code, 0 for symbols that do not occur; at most ``LIMIT``."""
    used = np.flatnonzero(histogram)
    lengths = np.zeros(len(histogram), np.int64)
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    # (weight, number of the node, symbols below it): the number makes ties, and so the code, reproducible
    heap = [(int(histogram[s]), number, [int(s)]) for number, s in enumerate(used)]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        below = a[2] + b[2]
        lengths[below] += 1
        heapq.heappush(heap, (a[0] + b[0], number, below))
        number += 1
    return _limited(lengths, histogram)


def _limited(lengths: Ints, histogram: Ints) -> Ints:
    """Cut to ``LIMIT``, then lengthen the rarest of the shorter codes until Kraft's sum is at most 1 again, then
    shorten the most frequent for which there is room."""
    out = np.minimum(lengths, LIMIT)
    used = np.flatnonzero(out)
    room = (1 << LIMIT) - int((1 << (LIMIT - out[used])).sum())
    rare = used[np.argsort(histogram[used], kind="stable")]
    while room < 0:
        s = next(int(s) for s in rare if out[s] == max(v for v in out[rare] if v < LIMIT))
        room += 1 << (LIMIT - int(out[s]) - 1)
        out[s] += 1
    # What lengthening gave away too much goes back to the most frequent.
    for s in rare[::-1]:
        while out[s] > 1 and 1 << (LIMIT - int(out[s])) <= room:
            room -= 1 << (LIMIT - int(out[s]))
            out[s] -= 1
    return out


def _codes(lengths: Ints) -> Ints:
    """Canonical: by length, then by symbol (RFC 1951, section 3.2.2)."""
    codes = np.zeros(len(lengths), np.int64)
    code, before = 0, 0
    for s in np.lexsort((np.arange(len(lengths)), lengths)):
        if not lengths[s]:
            continue
        code <<= int(lengths[s]) - before
        codes[s], before = code, int(lengths[s])
        code += 1
    return codes


def _write_lengths(out: Writer, lengths: Ints) -> None:
    """Runs of equal lengths: a number ``16 · (run - 1) + length`` each."""
    edges = np.flatnonzero(np.diff(lengths, prepend=-1))
    for begin, end in zip(edges, [*edges[1:], len(lengths)], strict=True):
        out.uint(16 * (int(end - begin) - 1) + int(lengths[begin]))


def _read_lengths(r: Reader, alphabet: int) -> Ints:
    runs: list[Ints] = []
    left = alphabet
    while left:
        run, length = divmod(r.uint(16 * left - 1), 16)
        runs.append(np.full(run + 1, length, np.int64))
        left -= run + 1
    lengths = np.concatenate(runs)
    used = lengths[lengths > 0]
    if not len(used) or int((1 << (LIMIT - used)).sum()) > 1 << LIMIT:
        raise malformed("a Huffman code that is none")
    return lengths


def _bits(codes: Ints, lengths: Ints) -> bytes:
    """The codes one after another, the highest bit first."""
    ends = np.cumsum(lengths)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for b in range(int(lengths.max(initial=0))):
        has = lengths > b
        bits[ends[has] - 1 - b] = codes[has] >> b & 1
    return np.packbits(bits).tobytes()


def _decode_streams(
    data: memoryview, bounds: tuple[Ints, Ints], wanted: Ints, lengths: Ints
) -> tuple[npt.NDArray[np.uint16], Ints]:
    """(symbols [steps, streams], the bit after the last of each stream)."""
    top = int(lengths.max())
    symbol, length = _table(lengths, top)
    padded = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(8, np.uint8)]).astype(np.int32)
    window = (
        padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    )  # 24 bits from each byte on: 15 + 7 are needed
    at, ends = bounds[0].copy(), bounds[1]
    steps, mask, last = int(wanted[0]), (1 << top) - 1, len(window) - 1
    out = np.zeros((steps, len(at)), np.uint16)
    active = len(at)
    for i in range(steps):
        while wanted[active - 1] <= i:  # later runs are never longer
            active -= 1
        here = at[:active]
        key = window.take(np.minimum(here >> 3, last)) >> (24 - top - (here & 7)) & mask
        out[i, :active] = symbol.take(key)
        here += length.take(key)
    if np.any(at > ends):
        raise malformed("a Huffman stream is truncated")
    return out, at


def _table(lengths: Ints, top: int) -> tuple[npt.NDArray[np.uint16], Ints]:
    """Symbol and length for every ``top`` bits. Bits that begin no code take a length that leaves every stream."""
    symbol = np.zeros(1 << top, np.uint16)
    length = np.full(1 << top, 1 << 40, np.int64)
    codes = _codes(lengths)
    for s in np.flatnonzero(lengths):
        n = int(lengths[s])
        begin = int(codes[s]) << (top - n)
        symbol[begin : begin + (1 << (top - n))] = s
        length[begin : begin + (1 << (top - n))] = n
    return symbol, length
