"""ONNX operators by family: each takes views on TFLite tensors and emits what computes the same.

In comes one ONNX node as views of its inputs and its attributes as keyword parameters. Out go the operators that LiteRT
executes for it, or the reason for which it cannot be expressed.

Importing this package imports every module in it, which fills the operator table (:mod:`..registry`); a failing
import is an error.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
