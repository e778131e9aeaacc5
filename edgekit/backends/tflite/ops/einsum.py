"""Einsum as transpositions, products and sums.

Each operand's repeated letters become diagonals and letters that nobody else needs are summed away; operands are
then contracted in pairs: letters of both and of the result are the batch, letters of both that end here are
summed by BATCH_MATMUL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32
from edgekit.backends.tflite.ops.elementwise import broadcast
from edgekit.backends.tflite.ops.matmul import matmul
from edgekit.backends.tflite.ops.reduction import reduce_view
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View


@op("Einsum", since=12)
def einsum(g: Builder, *operands: View, equation: str) -> View:
    """numpy's einsum, ellipses included."""
    if any(v.dtype != FLOAT32 for v in operands):
        raise Refusal("a sum over products of integers")
    terms, result = _parse(equation, [v.rank for v in operands])
    parts = [_diagonal(g, v, t) for v, t in zip(operands, terms, strict=True)]
    view, letters = parts[0]
    for i, (other, others) in enumerate(parts[1:], 2):
        needed = set(result).union(*(t for _, t in parts[i:]))
        view, letters = _contract(g, (view, letters), (other, others), needed)
    view, letters = _summed(g, view, letters, set(result))
    if set(letters) != set(result):
        raise Refusal(f"the equation {equation!r}")
    return g.transpose_view(view, [letters.index(c) for c in result])


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters of the operands and of the result; an ellipsis is spelled with letters of its own."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise Refusal(f"the equation {equation!r} with {len(ranks)} operands")
    # Greek letters: einsum's own are Latin.
    spare = [c for c in map(chr, range(0x3B1, 0x3CA)) if c not in text]
    widths = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)]
    width = max((w for w, t in zip(widths, terms, strict=True) if "..." in t), default=0)
    ellipsis = "".join(spare[:width])
    spelled = [t.replace("...", ellipsis[width - w :]) for t, w in zip(terms, widths, strict=True)]
    if arrow:
        result = right.replace("...", ellipsis)
    else:
        counts = "".join(terms).replace("...", "")
        result = ellipsis + "".join(sorted(c for c in set(counts) if counts.count(c) == 1))
    if any(len(t) != r for t, r in zip(spelled, ranks, strict=True)) or len(set(result)) != len(result):
        raise Refusal(f"the equation {equation!r}")
    return spelled, result


def _diagonal(g: Builder, view: View, letters: str) -> tuple[View, str]:
    """A letter that is there twice: the elements where both indices are equal."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            a, b = letters.index(letter), letters.rindex(letter)
            size = view.shape[a]
            rest = [i for i in range(view.rank) if i not in (a, b)]
            lead = g.transpose_view(view, [a, b, *rest])
            flat = g.plain(g.reshape_view(lead, (size * size, *lead.shape[2:])))
            (size, *flat.shape[1:])
            picked = g.ints(np.arange(size) * (size + 1))
            view = View.of(g.gather(flat, picked))
            letters = letter + "".join(letters[i] for i in rest)
    return view, letters


def _summed(g: Builder, view: View, letters: str, needed: set[str]) -> tuple[View, str]:
    gone = [i for i, c in enumerate(letters) if c not in needed]
    if not gone:
        return view, letters
    out = reduce_view(g, view, gone, False, lambda b, t, axes, keep: b.reduce("SUM", t, axes, keep))
    return out, "".join(c for c in letters if c in needed)


def _contract(
    g: Builder, left: tuple[View, str], right: tuple[View, str], needed: set[str]
) -> tuple[View, str]:
    """The product of two operands, summed over what only they have."""
    a, x = _summed(g, *left, needed | set(right[1]))
    b, y = _summed(g, *right, needed | set(left[1]))
    shared = [c for c in x if c in y]
    inner = [c for c in shared if c not in needed]
    batch = [c for c in shared if c in needed]
    rows, columns = [c for c in x if c not in y], [c for c in y if c not in x]
    # Nothing to sum over: MUL broadcasts, BATCH_MATMUL would only reshape.
    if not inner:
        return _multiplied(g, (a, x), (b, y), [*batch, *rows, *columns])
    size = {c: n for letters, view in ((x, a), (y, b)) for c, n in zip(letters, view.shape, strict=True)}
    for c in inner:
        if a.shape[x.index(c)] != b.shape[y.index(c)]:
            raise Refusal(f"different sizes under the letter {c}")
    m, k, n = (math.prod(size[c] for c in letters) for letters in (rows, inner, columns))
    lead_a, lead_b = ([v.shape[t.index(c)] for c in batch] for v, t in ((a, x), (b, y)))
    p = g.reshape_view(g.transpose_view(a, [x.index(c) for c in (*batch, *rows, *inner)]), (*lead_a, m, k))
    q = g.reshape_view(g.transpose_view(b, [y.index(c) for c in (*batch, *inner, *columns)]), (*lead_b, k, n))
    out = matmul(g, p, q)
    letters = [*batch, *rows, *columns]
    shape = [*out.shape[: len(batch)], *(size[c] for c in (*rows, *columns))]
    return g.reshape_view(out, shape), "".join(letters)


def _multiplied(
    g: Builder, left: tuple[View, str], right: tuple[View, str], order: Sequence[str]
) -> tuple[View, str]:
    """An element-wise (or outer) product, axes as in ``order``."""
    spread = []
    for view, letters in (left, right):
        sizes = dict(zip(letters, view.shape, strict=True))
        moved = g.transpose_view(view, [letters.index(c) for c in order if c in sizes])
        spread.append(g.reshape_view(moved, [sizes.get(c, 1) for c in order]))
    return broadcast(g, "MUL", spread), "".join(order)
