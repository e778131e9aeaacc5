"""Compression in PyTorch: steps that compose, a training loop, reports of what each step cost and gave.

A step is a frozen dataclass with one method, ``apply(model, context) -> model``; its fields are its
options on the command line, in a recipe file and in the manifest. See :mod:`edgekit.compress.step`.
"""

from __future__ import annotations
