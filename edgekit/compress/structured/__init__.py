"""Structured pruning: follow what one channel, head or unit is connected to, and cut it everywhere.

A forward pass is recorded operator by operator (:mod:`trace`); labels on every entry of every dimension go
through it (:mod:`labels`, :mod:`rules`); equal labels are cut together (:mod:`groups`, :mod:`cut`); the cut model
is compared with the masked one (:mod:`verify`). In comes a module with example inputs and a budget; out goes a smaller
module and the plan of what was cut.
"""

from __future__ import annotations
