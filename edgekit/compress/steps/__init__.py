"""The compression steps, one a file: pruning, sparsity, clustering, low rank, distillation, QAT, folding.

In comes a module and a context (task, example inputs, progress); out goes a module and what the step did to it.
A step is a frozen dataclass: its fields are its options, its place in a recipe and its cache key.
"""
