"""ONNX files as modules that train."""
