"""What ``edgekit doctor`` says of OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.core.doctor import Finding, Level, Machine


def diagnose(machine: Machine) -> Iterator[Finding]:
    """The telemetry, and processors on which float32 is not float32."""
    if "openvino-telemetry" in machine.packages:
        yield Finding(
            level=Level.INFO,
            what="openvino",
            detail="writes a client id to ~/intel when imported; edgekit imports it without its telemetry",
            hint="pip uninstall openvino-telemetry: OpenVINO works without it",
        )
    if machine.cpu_flags & {"avx512_bf16", "amx_bf16"} and "openvino" in machine.packages:
        yield Finding(
            level=Level.INFO,
            what="CPU",
            detail="OpenVINO runs float32 models in bf16 here unless told otherwise; edgekit pins float32",
        )
