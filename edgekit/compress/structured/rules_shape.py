"""Rules of operators that move, cut and join dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.compress.structured.labels import Ids, Labels, fixed
from edgekit.compress.structured.rules import refs, rule
from edgekit.compress.structured.trace import Call, Ref


@rule("t numpy_T mT adjoint")
def transposed(labels: Labels, call: Call) -> None:
    """Both dimensions change places."""
    dims = labels.of(call.args[0].id)
    labels.set(call.out.id, (*dims[:-2], *reversed(dims[-2:])))


@rule("transpose swapaxes")
def swapped(labels: Labels, call: Call) -> None:
    """Two dimensions change places."""
    dims = list(labels.of(call.args[0].id))
    if dims:
        a, b = call.args[1:3]
        dims[a], dims[b] = dims[b], dims[a]
    labels.set(call.out.id, dims)


@rule("permute")
def permuted(labels: Labels, call: Call) -> None:
    """Any order of the dimensions."""
    dims = labels.of(call.args[0].id)
    labels.set(call.out.id, [dims[a] for a in call.args[1]])


@rule("squeeze unsqueeze view _unsafe_view reshape _reshape_alias flatten unflatten")
def reshaped(labels: Labels, call: Call) -> None:
    """The same entries in other dimensions; see :func:`reshape`."""
    ref = call.args[0].id
    out = reshape(labels, labels.of(ref), labels.size(call.out.id))
    if call.op.endswith(("view", "reshape")):
        for ids in out:
            labels.constant(call, ids)
    labels.set(call.out.id, out)


def reshape(labels: Labels, dims: Sequence[Ids], shape: Sequence[int]) -> list[Ids]:
    """Labels after a reshape.

    Runs of dimensions with equal products are taken apart into their common factors, ``(3 · 12 · 64,)`` and
    ``(3, 12, 64)``. In each run entries of one factor can be cut, the others stay; which one is a choice.
    """
    source = [d for d in dims if len(d) != 1]
    places = [i for i, n in enumerate(shape) if n != 1]
    out = [fixed(n) for n in shape]
    if 0 in map(len, source):
        return out
    while source:
        left, right = [source.pop(0)], [places.pop(0)]
        a, b = len(left[0]), shape[right[0]]
        while a != b:
            if a < b:
                left.append(source.pop(0))
                a *= len(left[-1])
            else:
                right.append(places.pop(0))
                b *= shape[right[-1]]
        sizes = [shape[i] for i in right]
        for i, ids in zip(right, _run(labels, left, sizes), strict=True):
            out[i] = ids
    return out


@dataclass(frozen=True)
class _Factors:
    """The common factors of a run; ``left`` and ``right`` say which of them each dimension has."""

    sizes: tuple[int, ...]
    left: tuple[range, ...]
    right: tuple[range, ...]


def _factors(left: Sequence[int], right: Sequence[int]) -> _Factors | None:
    """``None`` if there are none: ``(4, 6)`` and ``(3, 8)``."""
    ends_left, ends_right = (np.cumprod((1, *s)).tolist() for s in (left, right))
    ends = sorted({*ends_left, *ends_right})
    if any(b % a for a, b in itertools.pairwise(ends)):
        return None
    sizes = tuple(b // a for a, b in itertools.pairwise(ends))
    spans = [
        tuple(range(ends.index(a), ends.index(b)) for a, b in itertools.pairwise(e))
        for e in (ends_left, ends_right)
    ]
    return _Factors(sizes, *spans)


def _run(labels: Labels, left: Sequence[Ids], right: Sequence[int]) -> list[Ids]:
    if len(left) == 1 and len(right) == 1:
        return [left[0]]
    factors = _factors([len(d) for d in left], right)
    if factors is None:
        for ids in left:
            labels.freeze(ids)  # reshape without common factors
        return [fixed(n) for n in right]
    free = [f for span, ids in zip(factors.left, left, strict=True) if labels.is_free(ids) for f in span]
    if not free:
        return [fixed(n) for n in right]
    site = ("reshape", factors.sizes, len(left), len(right), tuple(free))
    chosen = free[labels.choose(site, len(free))] if len(free) > 1 else free[0]
    label = fixed(0)
    for span, ids in zip(factors.left, left, strict=True):
        if chosen in span:
            table = np.moveaxis(ids.reshape([factors.sizes[f] for f in span]), chosen - span.start, 0)
            table = table.reshape(len(table), -1)
            labels.unify(table, table[:, :1])
            label = table[:, 0]
        else:
            labels.freeze(ids)  # other factor of a reshape
    out = []
    for span, size in zip(factors.right, right, strict=True):
        if chosen not in span:
            out.append(fixed(size))
            continue
        axes = [factors.sizes[f] for f in span]
        column = [-1 if f == chosen else 1 for f in span]
        out.append(np.broadcast_to(label.reshape(column), axes).reshape(-1))
    return out


@rule("expand")
def expanded(labels: Labels, call: Call) -> None:
    """A dimension of one becomes many equal ones, which follow what they are combined with."""
    dims = labels.of(call.args[0].id)
    shape = labels.size(call.out.id)
    new = len(shape) - len(dims)
    out = []
    for i, n in enumerate(shape):
        old = dims[i - new] if i >= new else fixed(1)
        if len(old) == n:
            out.append(old)
        else:
            out.append(labels.fresh(n))
            labels.constant(call, out[-1])
    labels.set(call.out.id, out)


@rule("repeat tile")
def repeated(labels: Labels, call: Call) -> None:
    """Whole copies, one after the other."""
    dims, times = labels.of(call.args[0].id), call.args[1]
    whole = (*(fixed(1) for _ in range(len(times) - len(dims))), *dims)
    out = [
        (labels.fresh(t) if len(d) == 1 and t > 1 else np.tile(d, t))
        for d, t in zip(whole, times, strict=True)
    ]
    labels.set(call.out.id, out)


@rule("cat concat")
def joined(labels: Labels, call: Call) -> None:
    """One after the other along one dimension."""
    parts = [labels.of(r.id) for r in call.args[0] if labels.size(r.id) != (0,)]
    axis = (call.args[1] or 0) % len(parts[0])
    out = list(parts[0])
    for part in parts[1:]:
        for i, ids in enumerate(part):
            if i != axis:
                labels.unify(out[i], ids)
    out[axis] = np.concatenate([p[axis] for p in parts])
    labels.set(call.out.id, out)


@rule("stack")
def stacked(labels: Labels, call: Call) -> None:
    """A new dimension, whose entries stay."""
    parts = [labels.of(r.id) for r in call.args[0]]
    out = list(parts[0])
    for part in parts[1:]:
        for mine, its in zip(out, part, strict=True):
            labels.unify(mine, its)
    axis = (call.args[1] or 0) % (len(out) + 1)
    out.insert(axis, fixed(len(parts)))
    labels.set(call.out.id, out)


@rule("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk")
def split(labels: Labels, call: Call) -> None:
    """Equal parts lose the same entries, so that a split into a number of parts still gives them."""
    dims = labels.of(call.args[0].id)
    axis = (call.args[2] or 0) % len(dims)
    parts = list(refs(call.out))
    sizes = [labels.size(p)[axis] for p in parts]
    labels.constant(call, dims[axis])
    if len(set(sizes)) == 1:
        _tie(labels, dims[axis], sizes[0])
    begin = 0
    for part, size in zip(parts, sizes, strict=True):
        piece = dims[axis][begin : begin + size]
        labels.constant(call, piece)
        labels.set(part, (*dims[:axis], piece, *dims[axis + 1 :]))
        begin += size


def _tie(labels: Labels, ids: Ids, size: int) -> None:
    blocks = ids.reshape(-1, size)
    labels.unify(blocks, blocks[:1])


@rule("slice")
def sliced(labels: Labels, call: Call) -> None:
    """A part of a dimension: all of it, or one of several equal parts; else the dimension stays."""
    x, axis, start, stop, step = (*call.args, None, None, None, None)[:5]
    dims = list(labels.of(x.id))
    axis = (axis or 0) % len(dims)
    ids = dims[axis]
    begin, end, by = slice(start, stop, step).indices(len(ids))
    size = end - begin
    if (begin, end, by) != (0, len(ids), 1) and labels.is_free(ids):
        if by == 1 and size > 0 and len(ids) % size == 0 and begin % size == 0:
            _tie(labels, ids, size)
            labels.constant(call, ids[begin:end])
        else:
            labels.freeze(ids)  # slice
    dims[axis] = ids[begin:end:by]
    labels.set(call.out.id, dims)


@rule("select unbind")
def selected(labels: Labels, call: Call) -> None:
    """One entry of a dimension, or each: they stay."""
    dims = labels.of(call.args[0].id)
    axis = (call.args[1] or 0) % len(dims)
    labels.freeze(dims[axis])  # select
    for ref in refs(call.out):
        labels.set(ref, (*dims[:axis], *dims[axis + 1 :]))


@rule("constant_pad_nd pad")
def padded(labels: Labels, call: Call) -> None:
    """How much is padded stands in the code, so that padding stays; what is between can go."""
    dims = list(labels.of(call.args[0].id))
    amounts = call.args[1]
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        axis = len(dims) - 1 - i
        ids = dims[axis]
        if before < 0 or after < 0:
            labels.freeze(ids)  # negative padding
            ids = ids[max(0, -before) : len(ids) - max(0, -after)]
        dims[axis] = np.concatenate([fixed(max(0, before)), ids, fixed(max(0, after))])
    labels.set(call.out.id, dims)


@rule("index_select gather take_along_dim")
def picked(labels: Labels, call: Call) -> None:
    """Entries of one dimension by index."""
    x, axis, index = call.args[:3]
    dims = list(labels.of(x.id))
    axis %= len(dims)
    labels.freeze(dims[axis])  # index
    if call.op.endswith("index_select"):
        dims[axis] = fixed(len(labels.of(index.id)[0]))
    else:
        dims = [labels.of(index.id)[i] if i == axis or len(d) == 1 else d for i, d in enumerate(dims)]
        shape = labels.size(call.out.id)
        for i, ids in enumerate(labels.of(index.id)):
            if len(ids) == len(dims[i]):
                labels.unify(dims[i], ids)
        dims = [d if len(d) == n else fixed(n) for d, n in zip(dims, shape, strict=True)]
    labels.set(call.out.id, dims)


@rule("index _unsafe_index")
def indexed(labels: Labels, call: Call) -> None:
    """``x[:, i, j]``: dimensions that are indexed stay; they are replaced where they were, if adjacent."""
    dims = labels.of(call.args[0].id)
    index = (*call.args[1], *(None,) * (len(dims) - len(call.args[1])))
    axes = [i for i, ref in enumerate(index) if isinstance(ref, Ref)]
    for i in axes:
        labels.freeze(dims[i])  # index
    rest = [d for i, d in enumerate(dims) if i not in axes]
    shape = labels.size(call.out.id)
    new = [fixed(n) for n in shape[: len(shape) - len(rest)]]
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    at = axes[0] if adjacent else 0
    new = [fixed(n) for n in shape[at : at + len(new)]]
    labels.set(call.out.id, [*rest[:at], *new, *rest[at:]])


@rule("pixel_shuffle pixel_unshuffle")
def shuffled_pixels(labels: Labels, call: Call) -> None:
    """Channels and their ``r²`` parts: parts of one channel go together."""
    dims = labels.of(call.args[0].id)
    shape, square = labels.size(call.out.id), call.args[1] ** 2
    if call.op.endswith("unshuffle"):
        channel = np.repeat(dims[-3], square)
    else:
        table = dims[-3].reshape(-1, square)
        labels.unify(table, table[:, :1])
        channel = table[:, 0]
    labels.set(call.out.id, (*dims[:-3], channel, *(fixed(n) for n in shape[-2:])))


@rule("channel_shuffle native_channel_shuffle")
def shuffled_channels(labels: Labels, call: Call) -> None:
    """``[g, c] → [c, g]``."""
    dims = labels.of(call.args[0].id)
    groups, shape = call.args[1], labels.size(call.out.id)
    apart = reshape(labels, dims, (shape[0], groups, shape[1] // groups, *shape[2:]))
    apart[1], apart[2] = apart[2], apart[1]
    labels.set(call.out.id, reshape(labels, apart, shape))


@rule("tril triu")
def triangle(labels: Labels, call: Call) -> None:
    """Positions stay."""
    dims = labels.of(call.args[0].id)
    for ids in dims[-2:]:
        labels.freeze(ids)  # triangle
    labels.set(call.out.id, dims)


@rule("glu")
def gated(labels: Labels, call: Call) -> None:
    """The halves go together."""
    dims = list(labels.of(call.args[0].id))
    axis = (-1 if call.args[1] is None else call.args[1]) % len(dims)
    half = len(dims[axis]) // 2
    _tie(labels, dims[axis], half)
    dims[axis] = dims[axis][:half]
    labels.set(call.out.id, dims)


@rule("repeat_interleave")
def interleaved(labels: Labels, call: Call) -> None:
    """Each entry several times; other forms stay."""
    out = next(refs(call.out))
    labels.freeze_all(refs(call.args))
    labels.set(out, [fixed(n) for n in labels.size(out)])


@rule("_local_scalar_dense is_nonzero equal item sym_size is_same_size _has_same_storage_numel")
def looked_at(labels: Labels, call: Call) -> None:
    """A number for Python."""
    labels.freeze_all(refs(call.args))  # read by Python
