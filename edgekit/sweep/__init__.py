"""Sweeps: sources × recipes × targets × options × devices, each cell a build of its own that costs only itself.

In comes a ``sweep.toml``; out come a folder of artifacts with one result a cell, and one report about all of them. It
stands above everything that builds: a cell is what ``edgekit build`` does, in a process of its own, on this machine
(:mod:`edgekit.sweep.local`) or on a Ray cluster (:mod:`edgekit.sweep.cluster`).
"""
