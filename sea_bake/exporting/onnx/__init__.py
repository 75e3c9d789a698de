"""ONNX: one decoder graph with KV cache, in a folder that the runtimes without hooks read as it is."""
