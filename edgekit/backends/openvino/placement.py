"""Placement."""

from __future__ import annotations
from collections.abc import Mapping
from typing import Any
from edgekit.types import Lowered, OnnxModel, Placement, Target


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Any]) -> Placement:
    """Not told yet."""
    return Placement(precision=str(target.precision), share=None, operators=0)
