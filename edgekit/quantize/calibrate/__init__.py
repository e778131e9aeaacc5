"""Calibration: statistics of a float model's activations (``collect``), ranges from them (``calibration``, ``ranges``).

In come an optimized ONNX model and samples, which ``doctor`` checks; out comes one :class:`calibration.Calibration`.
One pass over the samples serves every target and every range method.
"""
