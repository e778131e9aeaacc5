"""TensorRT, whose engines are built on the GPU that runs them, and TensorRT for RTX, whose are built without one.

In comes an ONNX graph (with Q/DQ where the target has a scheme). Out goes the portable, strongly typed ONNX that both
take, with a recipe or an engine beside it, and a placement by the engine inspector.
"""

from __future__ import annotations

from pathlib import Path


def gpu_present() -> bool:
    """Whether an NVIDIA driver is loaded on this machine."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
