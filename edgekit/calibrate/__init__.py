"""Activation statistics of a float model: one pass over the samples serves every target and range method."""

from edgekit.calibrate.calibration import METHODS, Calibration, TensorStatistics
from edgekit.calibrate.collect import calibrate
from edgekit.calibrate.doctor import Finding, Severity, diagnose
from edgekit.calibrate.histogram import Histogram

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
