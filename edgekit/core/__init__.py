"""What every other room stands on: the cache, configuration, plug-ins, the catalogue of targets.

In come files, environment variables and entry points; out go typed values, finished steps and target specs.
Nothing here knows a model, a graph or a runtime, and nothing here imports torch, onnx or numpy.
"""
