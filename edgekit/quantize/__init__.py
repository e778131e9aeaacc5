"""Quantization of ONNX graphs: which tensors become integers, with which scale, and what stays float (``driver``).

In come a float model, statistics of its activations (``calibrate/``), a target's scheme and the ``options``; out come a
Q/DQ model and a report on every node.
What a runtime computes on integers is a table of its backend (``rules`` says how one looks), not known here.
"""
