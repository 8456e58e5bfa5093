"""A training step, or a trained model, as an ONNX file."""
