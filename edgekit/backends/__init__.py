"""One folder a runtime: lowering from ONNX, and what that runtime says it executes.

In comes an ONNX graph (with Q/DQ where the target has a scheme); out go the runtime's own files and a placement.
A backend fits :class:`edgekit.types.Backend`, comes in by :mod:`edgekit.plugins`, and never imports another.
"""
