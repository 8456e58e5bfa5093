"""ATen operations as ONNX operators."""
