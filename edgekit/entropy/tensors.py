"""Context modelling of one matrix of signed numbers: what surrounds a weight predicts its magnitude.

Rows are cut into *lanes* that advance in step, one column at a time: numpy works on all lanes at once,
each lane knows its own left and upper neighbours, and all lanes share what is known of the column. The
contexts are magnitudes of neighbours, running means of the row and of the column, and the position in
the kernel; magnitudes enter as their groups in the tree (equal weight), so nothing depends on the scale.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from edgekit.entropy.alphabet import Buckets, Tree
from edgekit.entropy.mixing import Mixer
from edgekit.entropy.rans import BitCoder, Ints

_INPUTS = 7
_CONTEXTS = 224
_SIGN_INPUTS = 4
_SIGN_CONTEXTS = 288
_SIGN_BUCKETS = 8
_LEVELS = 26
_EARLY = 32
MAX_KERNEL = 32


def _levels() -> Ints:
    """Means of groups (0 to 15, times 64) to 26 levels: logarithmic below 64, linear above."""
    x = np.arange(16 * 64 + 1)
    return np.where(x < 64, np.searchsorted([1, 4, 8, 16, 32], x, side="right"), 6 + (x - 64) // 48)


class Signs(enum.IntEnum):
    """Which magnitudes carry a sign: none, all outside bucket 0, or all (negative zero, subnormals)."""

    NONE = 0
    NONZERO = 1
    ALL = 2


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The geometry of a matrix: ``rows`` × ``columns``, ``kernel`` columns a channel, ``lanes`` in step."""

    rows: int
    columns: int
    kernel: int = 1
    lanes: int = 1

    @property
    def lane_rows(self) -> int:
        """Rows of a lane; the last lanes may have fewer."""
        return -(-self.rows // self.lanes)


class TensorModel:
    """Codes matrices of one alphabet; what one teaches helps the next."""

    def __init__(self, buckets: Buckets, tree: Tree, *, signs: Signs, modelled: int) -> None:
        self._buckets, self._tree, self._signs_of = buckets, tree, signs
        self._modelled = min(modelled, int(buckets.width.max()))
        self._per_context = tree.nodes + buckets.count * ((1 << self._modelled) - 1) + 1
        self._magnitudes = Mixer(
            _INPUTS, _CONTEXTS * self._per_context, self._per_context, limit=1023, rate=14
        )
        self._signs = Mixer(_SIGN_INPUTS, _SIGN_CONTEXTS, _SIGN_BUCKETS, limit=255, rate=6)
        self._group2, self._group3, self._group4 = (tree.groups(d) for d in (2, 3, 4))
        self._level = _levels()

    def code(self, coder: BitCoder, plane: Plane, values: Values | None) -> Values:
        """Code one matrix: ``values`` when encoding, ``None`` when decoding. The modelled part comes back."""
        return _Walk(self, coder, plane, values).run()

    def next_tensor(self) -> None:
        """Keep what was learnt, but let the next matrix overrule it quickly."""
        self._magnitudes.relax(_EARLY)
        self._signs.relax(_EARLY)

    def _bucket(self, coder: BitCoder, context: Ints, want: Ints | None) -> Ints:
        """Walk the tree for every lane. ``context``: int64 [inputs, lanes], already times nodes."""
        tree, n = self._tree, context.shape[1]
        out = np.zeros(n, np.int64)
        # One bucket takes no decision.
        if tree.leaves == 1:
            return out
        who, node = np.arange(n), np.zeros(n, np.int64)
        while len(who):
            ctx = context if len(who) == n else context[:, who]
            bits = None if want is None else (want[who] >= tree.split[node]).astype(np.int64)
            bits = self._magnitudes.code(coder, ctx + node, node, bits)
            node = tree.child[node, bits]
            leaf = node < 0
            if leaf.any():
                out[who[leaf]] = -1 - node[leaf]
                who, node = who[~leaf], node[~leaf]
        return out

    def _low(self, coder: BitCoder, context: Ints, bucket: Ints, want: Ints | None) -> Ints:
        """The modelled low bits, most significant first, as an integer of at most ``modelled`` bits."""
        width = np.minimum(self._buckets.width[bucket], self._modelled)
        out = np.zeros(len(bucket), np.int64)
        span = (1 << self._modelled) - 1
        for bit in range(self._modelled):
            who = np.flatnonzero(width > bit)
            if not len(who):
                break
            node = self._tree.nodes + bucket[who] * span + ((1 << bit) - 1) + out[who]
            bits = None if want is None else want[who] >> (width[who] - 1 - bit) & 1
            bits = self._magnitudes.code(coder, context[:, who] + node, node, bits)
            out[who] = out[who] << 1 | bits
        return out


@dataclass(frozen=True, kw_only=True)
class Values:
    """The modelled part of a matrix, each int64 [rows, columns]: bucket, negative (0/1), leading low bits."""

    bucket: Ints
    negative: Ints
    low: Ints


class _Walk:
    """One pass over one matrix."""

    def __init__(self, model: TensorModel, coder: BitCoder, plane: Plane, values: Values | None) -> None:
        self._m, self._coder, self._plane, self._values = model, coder, plane, values
        k, c = plane.lanes, plane.columns
        shape = (plane.rows, c)
        self._out = Values(
            bucket=np.zeros(shape, np.int64),
            negative=np.zeros(shape, np.int64),
            low=np.zeros(shape, np.int64),
        )
        # [column, lane], two columns of margin on the left and one on the right
        self._up_group = np.zeros((c + 1, k), np.int64)
        self._up_sign = np.zeros((c + 1, k), np.int64)
        self._column_sum = np.zeros(c, np.int64)
        self._column_sign = np.zeros(c, np.int64)
        self._column_count = 0
        self._row_mean = np.zeros(k, np.int64)
        self._row_sign = np.zeros(k, np.int64)

    def run(self) -> Values:
        """Row by row of every lane."""
        plane = self._plane
        for r in range(plane.lane_rows):
            lanes = np.arange(r, plane.rows, plane.lane_rows)
            self._row(lanes)
        return self._out

    def _row(self, rows: Ints) -> None:
        """One row of each lane; ``rows`` are their row numbers."""
        m, plane, n, c = self._m, self._plane, len(rows), self._plane.columns
        up_group, up_sign = self._up_group[:, :n], self._up_sign[:, :n]
        column = m._level[self._column_sum * 64 // max(1, self._column_count)]
        group = np.zeros((c + 1, n), np.int64)
        sign = np.zeros((c + 1, n), np.int64)
        far = plane.kernel if plane.kernel > 1 else 3
        zero = np.zeros(n, np.int64)
        want = None
        if self._values is not None:
            # Columns first: a step of all lanes then lies together in memory.
            want = tuple(np.ascontiguousarray(a[rows].T) for a in _parts(self._values))
        result = tuple(np.empty((c, n), np.int64) for _ in range(3))
        for j in range(c):
            left = group[j - 1] if j else zero
            left2 = group[j - 2] if j > 1 else zero
            back = group[j - far] if j >= far else up_group[j - 1] if j else zero
            context = self._contexts(j, (left, left2, back), up_group, int(column[j]))
            b = m._bucket(self._coder, context, None if want is None else want[0][j])
            low = zero
            if m._modelled:
                low = m._low(self._coder, context, b, None if want is None else want[2][j])
            near = (sign[j - 1] if j else zero, up_sign[j], sign[j - far] if j >= far else zero)
            negative = self._sign(j, b, near, None if want is None else want[1][j])
            g = m._group4[b]
            group[j] = g
            sign[j] = np.where(b > 0, 1 + negative, 0)
            # A running mean over about 16 weights, in 1/64 of a group.
            self._row_mean[:n] += (g * 64 - self._row_mean[:n]) >> 4
            result[0][j], result[1][j], result[2][j] = b, negative, low
        for mine, new in zip(_parts(self._out), result, strict=True):
            mine[rows] = new.T
        self._up_group[:, :n], self._up_sign[:, :n] = group, sign
        self._column_sum += group[:c].sum(axis=1)
        self._column_sign += (sign[:c] == 1).sum(axis=1) - (sign[:c] == 2).sum(axis=1)
        self._column_count += n

    def _contexts(self, j: int, near: tuple[Ints, Ints, Ints], up_group: Ints, column: int) -> Ints:
        """int64 [inputs, lanes]. Groups are 0 to 15; 8 levels of them are ``>> 1``, 4 are ``>> 2``."""
        left, left2, back = near
        up, up_right = up_group[j], up_group[j + 1]
        n = len(left)
        row = self._m._level[self._row_mean[:n]]
        position = j % self._plane.kernel if self._plane.kernel <= MAX_KERNEL else 0
        mean = (2 * left + left2 + 2 * up + up_right + back) * 64 // 7
        context = np.empty((_INPUTS, n), np.int64)
        context[0] = position
        context[1] = (left >> 1) * 8 + (left2 >> 1)
        context[2] = (up >> 1) * 8 + (back >> 1)
        context[3] = row * 4 + (left >> 2)
        context[4] = column * 8 + (up >> 1)
        context[5] = self._m._level[mean]
        context[6] = (row >> 1) * 13 + (column >> 1)
        return context * self._m._per_context

    def _sign(self, j: int, bucket: Ints, near: tuple[Ints, Ints, Ints], want: Ints | None) -> Ints:
        """Signs of the lanes whose magnitude is not zero; ``near`` are neighbours: 0 none, 1 +, 2 -."""
        out = np.zeros(len(bucket), np.int64)
        signs = self._m._signs_of
        # Unsigned integers and the outputs of a ReLU: no bit is spent.
        if signs is Signs.NONE:
            return out
        who = np.arange(len(bucket)) if signs is Signs.ALL else np.flatnonzero(bucket)
        if not len(who):
            return out
        left, up, back = near[0][who], near[1][who], near[2][who]
        size = np.minimum(bucket[who], _SIGN_BUCKETS - 1)
        column = np.clip(self._column_sign[j] * 8 // max(1, self._column_count), -4, 4) + 4
        position = j % self._plane.kernel if self._plane.kernel <= MAX_KERNEL else 0
        context = np.empty((_SIGN_INPUTS, len(who)), np.int64)
        context[0] = np.minimum(bucket[who], _SIGN_CONTEXTS - 1)
        context[1] = (left * 3 + up) * 3 + back
        context[2] = position * 9 + up * 3 + left
        context[3] = column * 9 + up * 3 + left
        out[who] = self._m._signs.code(self._coder, context, size, None if want is None else want[who])
        return out


def _parts(values: Values) -> tuple[Ints, Ints, Ints]:
    return values.bucket, values.negative, values.low
