"""The straight line of a build: ``build`` reads from top to bottom, ``stages`` puts each stage behind the cache.

In comes a request (source, targets, options, data); out goes an artifact, or a typed error, for each target.
Rooms below do the work; what is decided here is the order, and what one stage hands to the next.
"""
