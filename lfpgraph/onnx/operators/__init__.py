"""A graph of ATen operations as ONNX operators."""
