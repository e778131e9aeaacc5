"""Activation statistics of a float model: one pass over the samples serves every target and range method."""

from edgekit.quantize.calibrate.calibration import METHODS, Calibration, TensorStatistics
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.calibrate.doctor import Finding, Severity, diagnose
from edgekit.quantize.calibrate.histogram import Histogram

__all__ = [
    "METHODS",
    "Calibration",
    "Finding",
    "Histogram",
    "Severity",
    "TensorStatistics",
    "calibrate",
    "diagnose",
]
