"""The compression steps: pruning, sparsity, clustering, low rank, distillation, QAT, folding.

In comes a module and a context (task, example inputs, seed); out goes a module and what the step did to it.
``<step>.py`` has the options and their meaning, imports no PyTorch and names the module with the work
(``<step>_….py``).
"""
