"""Compression in PyTorch: steps that compose, a training loop, reports of what each step cost and gave.

In comes a module, a recipe of steps and, where they train, a task; out goes a smaller module and a plan, from which it
is made again of the original's source. A step is a frozen dataclass (:mod:`step`) that names the module which does it:
so recipes are read (:mod:`registry`, :mod:`recipes`) without PyTorch, and :mod:`run` imports it.
"""
