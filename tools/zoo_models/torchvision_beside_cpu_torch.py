"""Make torchvision and timm importable beside a CPU build of torch.

The index's torchvision is built against CUDA: its extension does not load here, and the import then fails
because its operators are unknown. Declaring them first is enough for every model, and ``nms`` gets a plain
implementation so that detectors run. Both packages live in ``.venv-zoo``, apart from ``.venv``: a torchvision
without its extension also breaks transformers.

    make zoo-packages
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

SITE = Path(__file__).resolve().parents[2] / ".venv-zoo"

_ALIGN = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SHAPE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORM = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, Tensor rois, {_ALIGN}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, {_ALIGN}, {_SHAPE}, int sampling_ratio, bool aligned)"
    " -> Tensor",
    f"ps_roi_align(Tensor input, Tensor rois, {_ALIGN}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {_ALIGN}, int sampling_ratio,"
    f" {_SHAPE}) -> Tensor",
    f"roi_pool(Tensor input, Tensor rois, {_ALIGN}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {_ALIGN}, {_SHAPE}) -> Tensor",
    f"ps_roi_pool(Tensor input, Tensor rois, {_ALIGN}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {_ALIGN}, {_SHAPE}) -> Tensor",
    f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {_DEFORM}) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias,"
    f" {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_library: torch.library.Library | None = None


def install() -> None:
    """Put ``.venv-zoo`` on the path and declare torchvision's operators. Call before the first import."""
    global _library
    if _library is not None:
        return
    if not (SITE / "torchvision").is_dir():
        raise SystemExit(f"torchvision is not in {SITE.name}: make zoo-packages")
    sys.path.append(str(SITE))
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    _library.impl("nms", _nms, "CPU")
    import torchvision

    torchvision.extension._has_ops = lambda: True  # they are declared now


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression over ``[N, 4]`` corner boxes; indices by falling score."""
    order = scores.argsort(descending=True)
    area = (dets[:, 2:] - dets[:, :2]).clamp(min=0).prod(dim=1)
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        corner = torch.maximum(dets[best, :2], dets[order, :2])
        size = (torch.minimum(dets[best, 2:], dets[order, 2:]) - corner).clamp(min=0)
        overlap = size.prod(dim=1)
        order = order[overlap / (area[best] + area[order] - overlap) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)
