"""Which files hold weights, and which code: by their endings, in one list that all rooms obey."""

from __future__ import annotations

# Read by unpickling, which runs whatever the file says.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
# Weights in other forms than safetensors: neither read nor carried. Carried along, some loader would serve them, and
# they are the *unedited* model.
OTHER_WEIGHTS = (
    *PICKLES,
    *(".h5", ".keras", ".msgpack", ".onnx", ".onnx_data", ".onnx.data", ".gguf", ".tflite", ".mlmodel", ".npy", ".npz"),
    *(".pb", ".ot"),
)
WEIGHTS = (".safetensors", *OTHER_WEIGHTS)
CODE = (
    *(".py", ".pyc", ".pyd", ".pyw", ".so", ".dll", ".dylib", ".exe", ".jar"),
    *(".sh", ".bat", ".cmd", ".ps1", ".js", ".mjs", ".cjs"),
)
NOT_FETCHED = [*(f"*{suffix}" for suffix in OTHER_WEIGHTS), "original/*"]


def ends(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name has one of the endings, in any case."""
    return name.lower().endswith(suffixes)
