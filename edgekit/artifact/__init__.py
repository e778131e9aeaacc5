"""What leaves edgekit: the manifest, golden vectors, parity with the source, and the gates upon them.

In comes an artifact's folder (or what a backend lowered, before it has one) and a device to run it on; out come
predictions, parity, profiles and measurements. Everything here can be repeated by whoever receives the artifact.
"""
