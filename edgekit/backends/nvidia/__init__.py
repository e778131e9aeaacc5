"""What the two TensorRT backends share: the portable ONNX, the parser in a process of its own, dynamic axes."""
