"""A backend that somebody else wrote: all that a third-party wheel needs."""

from pathlib import Path

from edgekit.core.plugins import Plugin

plugin = Plugin(
    name="acme",
    data=Path(__file__).parent / "targets",
    backends={"acme": "edgekit_acme.backend"},
)
