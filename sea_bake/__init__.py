"""sea_bake: turn an activation edit (SEA, arXiv 2405.09719) into an ordinary model.

Five nouns (Demonstration, Site, Projector, Edit, Verification) and the verbs fit, bake, verify. Names are resolved on
first use, so that ``import sea_bake`` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Activations": "sea_bake.activations",
    "Demonstration": "sea_bake.demonstrations",
    "Edit": "sea_bake.edit",
    "Projector": "sea_bake.methods.sea",
    "SeaBakeError": "sea_bake.errors",
    "Site": "sea_bake.model.anatomy",
    "Verification": "sea_bake.verification",
    "ask": "sea_bake.serving.asking",
    "bake": "sea_bake.baking",
    "chat": "sea_bake.serving.chatting",
    "collect": "sea_bake.activations",
    "doctor": "sea_bake.serving.doctor",
    "evaluate": "sea_bake.evaluation",
    "export_control_vector": "sea_bake.exporting.gguf.control_vector",
    "export_gguf": "sea_bake.exporting.gguf",
    "export_mlx": "sea_bake.exporting.mlx",
    "export_onnx": "sea_bake.exporting.onnx",
    "fit": "sea_bake.fitting",
    "import_edit": "sea_bake.exporting.edits",
    "plan": "sea_bake.baking",
    "publish": "sea_bake.publishing",
    "report": "sea_bake.reporting",
    "reproduce": "sea_bake.recipes.reproducing",
    "run": "sea_bake.recipes.running",
    "serve": "sea_bake.serving.server",
    "tune": "sea_bake.fitting.tuning",
    "unbake": "sea_bake.baking",
    "verify": "sea_bake.verification",
}
__all__ = [
    "Activations",
    "Demonstration",
    "Edit",
    "Projector",
    "SeaBakeError",
    "Site",
    "Verification",
    "ask",
    "bake",
    "chat",
    "collect",
    "doctor",
    "evaluate",
    "export_control_vector",
    "export_gguf",
    "export_mlx",
    "export_onnx",
    "fit",
    "import_edit",
    "plan",
    "publish",
    "report",
    "reproduce",
    "run",
    "serve",
    "tune",
    "unbake",
    "verify",
]

if TYPE_CHECKING:
    from sea_bake.activations import Activations, collect
    from sea_bake.baking import bake, plan
    from sea_bake.baking.unbake import unbake
    from sea_bake.demonstrations import Demonstration
    from sea_bake.edit import Edit
    from sea_bake.errors import SeaBakeError
    from sea_bake.evaluation import evaluate
    from sea_bake.exporting.edits import import_edit
    from sea_bake.exporting.gguf import export_gguf
    from sea_bake.exporting.gguf.control_vector import export_control_vector
    from sea_bake.exporting.mlx import export_mlx
    from sea_bake.exporting.onnx import export_onnx
    from sea_bake.fitting import fit
    from sea_bake.fitting.tuning import tune
    from sea_bake.methods.sea import Projector
    from sea_bake.model.anatomy import Site
    from sea_bake.publishing import publish
    from sea_bake.recipes.reproducing import reproduce
    from sea_bake.recipes.running import run
    from sea_bake.reporting import report
    from sea_bake.serving.asking import ask
    from sea_bake.serving.chatting import chat
    from sea_bake.serving.doctor import doctor
    from sea_bake.serving.server import serve
    from sea_bake.verification import Verification, verify


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sea_bake' has no attribute '{name}'")
