"""ONNX graphs: made from PyTorch (``export/``), read and written (``io``), counted (``macs``), rewritten (``passes/``).

In comes a loaded model; out goes an :class:`~edgekit.types.OnnxModel` that was compared with it.
Nothing here knows a target: what one runtime wants of a graph is its backend's, or its scheme's.
"""
