"""What every test shares: no network, no home directory, no dependence on chance; and tiny models made only once."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import real
from _pytest import runner
from hypothesis import settings
from roomy import roomy

# Before torch and transformers are imported, here or in a process that a test starts.
_HOME = tempfile.TemporaryDirectory(prefix="sea-bake-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = _HOME.name  # copies that transformers makes of custom code belong to this run alone
os.environ["SEA_BAKE_CACHE"] = ""  # the base of each verification answers, but where a test says otherwise
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models have nothing to share out; on busy cores, threads that wait for each other cost 20 times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every operation of a trace would be put into the log that pytest keeps of a test.
logging.getLogger("torch.__trace").propagate = False

# A trace makes and drops millions of small things: what is dead is looked for a twentieth as often as Python would.
gc.set_threshold(20_000, 10, 10)

real.begin()


def _not_flushed(file: Any) -> None:
    """Files of tests need not outlast a power cut, and waiting for the disk took a twentieth of all the time. What is
    flushed, and when, is proved on the real calls of other processes (``test_faults``).
    """
    os.fstat(file if isinstance(file, int) else file.fileno())  # what is not open is refused here too


os.fsync = _not_flushed

# The longest files first, so that the workers end together; what the first one makes of SmolLM2 two later ones take.
LONGEST = (
    "onnx_quantised", "doors", "scripts", "folds", "onnx", "publish", "next_steps", "loading", "onnx_runtimes",
    "processes", "faults", "recipes", "methods", "tune_workers", "report", "serving", "edits_on_the_hub", "worth",
    "approximate", "gguf", "injection", "documents", "tune", "affine_smollm2", "affine", "evaluation", "sources",
    "onnx_smollm2", "onnx_verify", "cli", "discovery", "whole_or_nothing", "house", "odd_checkpoints", "checkpoint",
    "cures", "security", "fuzz", "web", "control_vectors", "starting", "activations", "placing",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    return roomy(lambda: runner.pytest_runtest_protocol(item, nextitem))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is alive when a file begins stays, and so does what it has imported once that takes its time: nobody has to
    look through all of torch and transformers again whenever something is collected. An ONNX export does that by
    itself, where it is a sixth of its time, and a fold does it twice.
    """
    if _Garbage.file != item.path:
        if _Garbage.frozen_inside:  # models of the file before, which may hang together in circles
            gc.unfreeze()
        _Garbage.file, _Garbage.frozen_inside = item.path, False
    elif _Garbage.seconds > 0.05:
        _Garbage.frozen_inside = True
    else:
        return
    gc.collect()
    gc.freeze()
    _Garbage.seconds = 0.0


class _Garbage:
    """When it is looked for, and how long the last search of everything took."""

    file: Path | None = None
    frozen_inside = False
    began = seconds = 0.0

    @classmethod
    def watch(cls, phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            if phase == "start":
                cls.began = time.process_time()
            else:
                cls.seconds = time.process_time() - cls.began


gc.callbacks.append(_Garbage.watch)

if TYPE_CHECKING:
    import torch

    from sea_bake import Activations, Edit
    from sea_bake.artefact.record import BakeRecord

# Examples are drawn the same way in every run: a failure here is a failure everywhere.
settings.register_profile("sea_bake", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("sea_bake")


class Workshop:
    """Tiny models (``families``), their activations, edits and artefacts, each made once: do not change them. Models
    and activations are made once for all workers, of which each has a copy.

    Edits are fitted on layers 1 and 3 of 4, so that an edited layer stands behind another and one stands unedited.
    """

    LAYERS: tuple[int, ...] = (1, 3)
    K = 0.9  # ranks 3 to 5 of the 6 that six demonstrations can give

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def base(self, family: str, **how: Any) -> Path:
        """A checkpoint folder; ``how`` goes to ``families.save``."""
        import families

        name = "-".join(
            ["tiny", family, *(key if value is True else str(value) for key, value in sorted(how.items()) if value)]
        )
        return self.once(
            name,
            lambda: shutil.copytree(
                real.once(f"models/{name}", lambda folder: families.save(family, folder, **how)), self.folder / name
            ),
        )

    def model(self, family: str, dtype: torch.dtype | str = "float32") -> Any:
        """The living base, loaded from its checkpoint."""
        return self.once((family, dtype), lambda: load(self.base(family), dtype))

    def activations(self, family: str, site: str) -> Activations:
        """Of all sites of a family together, but for its heads, which few need."""
        import families

        from sea_bake import Activations
        from sea_bake.activations import collect_sites

        def make(folder: Path) -> None:
            found = collect_sites(
                self.model(family),
                families.tokenizer(),
                families.demonstrations(),
                source=self.base(family).name,
                sites=[site] if site == "heads" else families.sites(family),
                max_new_tokens=8,
            )
            for one, activations in found.items():
                activations.save(folder / f"{one.value}.safetensors")

        name = f"activations/{self.base(family).name}" + "-heads" * (site == "heads")
        return self.once((name, site), lambda: Activations.load(real.once(name, make) / f"{site}.safetensors"))

    def layers(self, family: str, site: str) -> list[int]:
        """Those that are edited: of ``LAYERS`` those that have the site, which is one alone in Nemotron-H."""
        from sea_bake.model.sites import Site, layers_with

        found = layers_with(self.model(family), Site(site))
        return [layer for layer in self.LAYERS if layer in found]

    def edit(self, family: str, site: str = "mlp", merge: str = "l2", feature: str = "identity") -> Edit:
        from sea_bake import fit

        return self.once(
            ("edit", family, site, merge, feature),
            lambda: fit(
                None,
                activations=self.activations(family, site),
                layers=self.layers(family, site),
                K=self.K,
                merge=merge,
                feature=feature,
                alpha=1.0,
                centre=False,
            ),
        )

    def artefact(self, family: str, *setting: str) -> Path:
        """The baked edit of these settings (site, merge, feature)."""
        from sea_bake import bake

        def make() -> Path:
            return bake(self.base(family), self.edit(family, *setting), self.folder / name, how="insert").output

        name = "-".join(["sea", family, *setting])
        return self.once(name, make)

    def together(self, family: str, settings: tuple[tuple[str, ...], ...]) -> Path:
        """The edits of all these settings, baked into one artefact."""
        from sea_bake import bake

        if len(settings) == 1:
            return self.artefact(family, *settings[0])
        name = "-".join(["sea", family, "together", *map("-".join, settings)])
        edits = [self.edit(family, *setting) for setting in settings]
        return self.once(name, lambda: bake(self.base(family), edits, self.folder / name, how="insert").output)

    def folded(self, family: str, *settings: tuple[str, str]) -> BakeRecord:
        """The fold of linear edits (site, merge): its report, whose ``output`` is the folder."""
        from sea_bake import bake

        name = "-".join(["fold", family, *map("-".join, settings)])
        edits = [self.edit(family, site, merge, "identity") for site, merge in settings]
        return self.once(name, lambda: bake(self.base(family), edits, self.folder / name, how="fold"))


def load(folder: Path, dtype: torch.dtype | str = "auto", **options: Any) -> Any:
    """A checkpoint as any user would load it; nothing missing, unexpected or mismatched."""
    import families

    from sea_bake.verification.answers import align

    model_type = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    model, info = families.auto(model_type).from_pretrained(
        folder, dtype=dtype, trust_remote_code=True, output_loading_info=True, **options
    )
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    assert problems == {}, f"loading {folder.name}: {problems}"
    align(model)
    return model.eval()


@pytest.fixture
def every_processor_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a processor has AVX512-BF16, bitsandbytes packs 4-bit weights anew, and that takes rows by 32 only: "N must
    be divisible by block_n". The widths of tiny models are no such multiples, so its other path is taken everywhere.
    """
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def imports_read_once() -> None:
    """transformers takes an artefact's code apart for its imports at every load: the same code here, each time."""
    from transformers import dynamic_module_utils

    plain, known = dynamic_module_utils.get_imports, {}

    def get_imports(filename: str) -> list[str]:
        text = Path(filename).read_bytes()
        if text not in known:
            known[text] = plain(filename)
        return list(known[text])

    dynamic_module_utils.get_imports = get_imports


@pytest.fixture(scope="session", autouse=True)
def quick_traces() -> None:
    """An ONNX export parses the source of every operator that torch knows, for their names: the same, each time. And
    what it remembers of tensors whose sizes are symbols is seldom met again: a tenth of its time.
    """
    import torch.onnx
    from torch.onnx._internal._lazy_import import onnxscript_apis

    plain = torch.onnx.export

    def export(*arguments: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            return plain(*arguments, **options)

    def operators() -> Any:
        return type(onnxscript_apis).__getattr__(onnxscript_apis, "get_torchlib_ops")()

    torch.onnx.export = export
    vars(onnxscript_apis)["get_torchlib_ops"] = functools.cache(operators)


@pytest.fixture(autouse=True)
def forked_doors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``verify`` forks its processes (``doors``), but where a test is marked ``own_processes``."""
    if request.node.get_closest_marker("own_processes") is None:
        fork_doors(monkeypatch)


def fork_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    import doors

    from sea_bake.verification import doors as verification

    kind = types.SimpleNamespace(run=doors.run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(verification, "subprocess", kind)


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Greedy answers of an evaluation are of 16 tokens, a quarter of what users get: half of the time of an evaluation
    of tiny models. For files that evaluate in this process alone.
    """
    from sea_bake.evaluation import damage

    with pytest.MonkeyPatch.context() as patch:
        assert damage.generations.__wrapped__.__kwdefaults__["max_new_tokens"] == 64
        patch.setitem(damage.generations.__wrapped__.__kwdefaults__, "max_new_tokens", 16)
        yield


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a float32 checkpoint: not to be changed."""
    return real.base()


@pytest.fixture(scope="session")
def short_smollm2() -> Path:
    """Some of its layers (``real.short``), for what does not hang on how deep a model is: not to be changed."""
    return real.short()


def pair_of(*given: Any, **options: Any) -> contextlib.closing[Any]:
    """Base and edited model side by side, closed at the end of a block."""
    from sea_bake.serving.opening import opened

    return contextlib.closing(opened(*given, **options))
