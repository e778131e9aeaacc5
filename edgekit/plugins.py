"""The door for plug-ins: what a third party's wheel imports. See :mod:`edgekit.core.plugins`."""

from __future__ import annotations

from edgekit.core.plugins import BackendInfo as BackendInfo
from edgekit.core.plugins import Plugin as Plugin
from edgekit.core.plugins import builtin as builtin

__all__ = ["BackendInfo", "Plugin", "builtin"]
