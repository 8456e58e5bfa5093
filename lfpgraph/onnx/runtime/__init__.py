"""Training without torch: a step's file, its data and its state, with numpy and onnxruntime alone."""
