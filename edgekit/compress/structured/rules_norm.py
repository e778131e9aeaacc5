"""Rules of normalisations, reductions, pooling and resizing."""

from __future__ import annotations

from edgekit.compress.structured.labels import Ids, Labels, fixed
from edgekit.compress.structured.rules import refs, rule
from edgekit.compress.structured.trace import Call


@rule(
    "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit batch_norm "
    "cudnn_batch_norm _batch_norm_no_update _batch_norm_with_update"
)
def batch_norm(labels: Labels, call: Call) -> None:
    """Each channel by itself."""
    dims = labels.of(call.args[0].id)
    for ref in refs(call.args[1:]):
        labels.unify(dims[1], labels.of(ref)[0])
    _first(labels, call, dims)


@rule("native_layer_norm _fused_rms_norm")
def layer_norm(labels: Labels, call: Call) -> None:
    """The statistics count all entries of the last dimensions."""
    dims = labels.of(call.args[0].id)
    count = len(call.args[1])
    for ids in dims[-count:]:
        labels.inexact(ids)
    for ref in refs(call.args[2:]):
        for mine, its in zip(dims[-count:], labels.of(ref), strict=True):
            labels.unify(mine, its)
    _first(labels, call, dims)


@rule("native_group_norm")
def group_norm(labels: Labels, call: Call) -> None:
    """Whole groups, or the same channels of each: then the statistics change."""
    x, weight, bias, *_, groups, _ = call.args
    dims = labels.of(x.id)
    for ref in refs((weight, bias)):
        labels.unify(dims[1], labels.of(ref)[0])
    blocks = dims[1].reshape(groups, -1)
    if groups == 1:
        labels.inexact(dims[1])
    elif blocks.shape[1] == 1 or labels.choose(("group norm", *blocks.shape), 2) == 0:
        labels.unify(blocks, blocks[:, :1])
        labels.constant(call, blocks[:, 0])
    else:
        labels.unify(blocks, blocks[:1])
        labels.inexact(dims[1])
    _first(labels, call, dims)


def _first(labels: Labels, call: Call, dims: tuple[Ids, ...]) -> None:
    first, *others = refs(call.out)
    labels.set(first, dims)
    labels.set_fixed(others)


@rule("_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp sort topk flip roll")
def over_one(labels: Labels, call: Call) -> None:
    """Along one or more dimensions, all of whose entries matter to each other."""
    dims = list(labels.of(call.args[0].id))
    given = call.args[2:] if call.op.endswith(("roll", "topk")) else call.args[1:]
    axes = next((a for a in given if isinstance(a, int | tuple) and not isinstance(a, bool)), -1)
    for axis in (axes,) if isinstance(axes, int) else axes or range(len(dims)):
        labels.freeze(dims[axis])
    for ref in refs(call.out):
        shape = labels.size(ref)
        labels.set(ref, [d if len(d) == n else fixed(n) for d, n in zip(dims, shape, strict=True)])


@rule("sum linalg_vector_norm norm count_nonzero")
def summed(labels: Labels, call: Call) -> None:
    """Zeros add nothing: what is cut may be summed over."""
    _reduce(labels, call, exact=True)


@rule("mean var std amax amin max min argmax argmin prod logsumexp any all var_mean std_mean median")
def averaged(labels: Labels, call: Call) -> None:
    """The result depends on how many there are, or on zeros."""
    _reduce(labels, call, exact=False)


def _reduce(labels: Labels, call: Call, *, exact: bool) -> None:
    dims = labels.of(call.args[0].id)
    # norms have their order before the dimensions
    place = 2 if call.op.endswith("norm") else 1
    given = call.args[place] if len(call.args) > place else None
    if isinstance(given, int) and not isinstance(given, bool):
        given = (given,)
    axes = range(len(dims)) if not isinstance(given, tuple) or not given else [a % len(dims) for a in given]
    if not exact:
        for axis in axes:
            if call.op.endswith(("argmax", "argmin", "prod")):
                labels.freeze(dims[axis])
            labels.inexact(dims[axis])
    for ref in refs(call.out):
        kept = len(labels.size(ref)) == len(dims)
        left = [fixed(1) if i in axes else d for i, d in enumerate(dims) if kept or i not in axes]
        labels.set(ref, left)


_SPATIAL = {"1d": 1, "2d": 2, "3d": 3}


@rule(
    "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d max_pool2d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d max_pool1d "
    "adaptive_avg_pool1d adaptive_avg_pool2d mkldnn_adaptive_avg_pool2d grid_sampler_2d grid_sampler "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d replication_pad3d reflection_pad3d max_pool3d"
)
def spatial(labels: Labels, call: Call) -> None:
    """Each channel by itself; positions stay."""
    dims = labels.of(call.args[0].id)
    count = next((n for name, n in _SPATIAL.items() if name in call.op), 2)
    for ref in refs(call.args):
        for ids in labels.of(ref)[-count:]:
            labels.freeze(ids)  # positions
    for ref in refs(call.out):
        shape = labels.size(ref)
        labels.set(ref, (*dims[: len(dims) - count], *(fixed(n) for n in shape[len(dims) - count :])))
