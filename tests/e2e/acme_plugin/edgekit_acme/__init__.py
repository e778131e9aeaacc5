"""A backend that somebody else wrote: all that a third-party wheel needs."""

from pathlib import Path

from edgekit.plugins import Plugin

plugin = Plugin(
    name="acme",
    data=Path(__file__).parent / "targets",
    backends={"acme": "edgekit_acme.backend"},
    rules={"acme": "edgekit_acme.rules"},
    formats={"acme-box": "edgekit_acme.box"},
)
