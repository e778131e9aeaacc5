"""What ``edgekit doctor`` says of LiteRT."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.core.doctor import Finding, Level, Machine


def diagnose(machine: Machine) -> Iterator[Finding]:
    """tflite-runtime beside a numpy that it does not know."""
    packages = machine.packages
    if "tflite-runtime" in packages and int(packages.get("numpy", "0").split(".")[0]) >= 2:
        yield Finding(
            level=Level.ERROR,
            what="tflite-runtime",
            detail=f"{packages['tflite-runtime']} dies with SystemError beside numpy {packages['numpy']}",
            hint="pip uninstall tflite-runtime and use ai-edge-litert, or an environment with numpy < 2",
        )
