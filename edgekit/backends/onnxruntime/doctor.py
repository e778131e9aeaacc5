"""What ``edgekit doctor`` says of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.backends.onnxruntime import DISTRIBUTIONS
from edgekit.core.doctor import Finding, Level, Machine


def diagnose(machine: Machine) -> Iterator[Finding]:
    """Builds that overwrite each other, and the telemetry."""
    installed = [name for name in DISTRIBUTIONS if name in machine.packages]
    if len(installed) > 1:
        yield Finding(
            level=Level.ERROR,
            what="onnxruntime",
            detail=f"{' and '.join(installed)} overwrite each other's files",
            hint=f"pip uninstall {' '.join(installed)}, then install one of them again",
        )
    if installed and machine.environ.get("ORT_DISABLE_TELEMETRY") != "1":
        yield Finding(
            level=Level.INFO,
            what="onnxruntime",
            detail="has telemetry on by default since 1.29; edgekit switches it off in its own processes",
            hint="export ORT_DISABLE_TELEMETRY=1 for your own",
        )
