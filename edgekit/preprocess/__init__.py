"""The preprocessing contract: how the pixels of an image become the tensor that a model reads.

In comes what a source declares (a mapping, a Hugging Face processor, timm's settings); out go contracts, and arrays
made by them. The arithmetic is in integers, so that apps in other languages repeat it bit for bit.
"""
