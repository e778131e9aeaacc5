"""Search under a budget: which recipe and target are smallest or fastest within what may be lost.

In come a source, a budget and data; out goes a recipe whose artifact was confirmed on data that the search did not see.
It stands above the pipeline: every trial is exported, quantized, lowered and run by a build's own stages.
"""
