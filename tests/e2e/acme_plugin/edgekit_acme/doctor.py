"""What edgekit doctor says of the engine."""

from collections.abc import Iterator

from edgekit.core.doctor import Finding, Level, Machine


def diagnose(machine: Machine) -> Iterator[Finding]:
    version = machine.packages["edgekit-acme"]
    yield Finding(level=Level.INFO, what="acme", detail=f"plug-in {version}: the engine runs on one thread")
