"""Training inside compression: the loop, the tasks, data in batches, checkpoints, curves.

In comes a module, a task and training settings; out goes the trained module, resumable to the same bytes.
Steps call it between and after their changes; it knows none of them.
"""
