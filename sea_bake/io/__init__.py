"""Files, whole or not at all: staging, our safetensors and JSON, digests; and progress bars, and Ctrl-C heeded."""
