"""Both sides of an ONNX export in ONNX Runtime: the strength is an input, or the edit's own nodes are led past."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import rendered
from sea_bake.artefact import Artefact
from sea_bake.artefact.names import GRAPH_FILES, GRAPHS
from sea_bake.errors import CheckpointError, first_line_of, need
from sea_bake.io.files import read_json
from sea_bake.model.loading import load_tokenizer
from sea_bake.serving.living import Streamer
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply, Say, Turns, room_for, tokens_of
from sea_bake.serving.sampling import Sampling
from sea_bake.verification.bypass import bypass


class Graph(Pair):
    """An export's first graph (float32, or float16), with its cache.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CheckpointError: a graph that it cannot open.
    """

    runtime = "onnxruntime"

    def __init__(self, artefact: Artefact, *, device: str | None = None, form: PromptFormat | None = None) -> None:
        need("onnx", "Answering with an ONNX export", "onnx", "onnxruntime")
        record = artefact.onnx
        self.name, self.how, self.form = artefact.name, "onnx", form or PromptFormat()
        self.folder, self.record, self.device = artefact.folder, record, device or "cpu"
        self.tokenizer = load_tokenizer(artefact.folder)
        if record.how == "unedited":
            self.sides, self.lacking = (
                (BASE,),
                f"{self.name} is the export of an unedited model: there is no edit in it",
            )
        elif record.strength or record.sea_nodes:
            self.sides = (BASE, EDITED)
        else:
            self.sides = (EDITED,)
            self.lacking = (
                f"{self.name} is the export of a fold, and its base is not in it: export the base, and ask that"
            )
        if not record.strength:
            self.fixed = f"{self.name} was exported without a strength: export it again with --strength"
        self._scratch = tempfile.TemporaryDirectory(prefix="sea-bake-graph-")
        self._decoder = self._open({"graph": str(self._graph)})

    @property
    def _graph(self) -> Path:
        return self.folder / GRAPHS / GRAPH_FILES[self.record.graphs[0]]

    def _open(self, request: dict[str, Any]) -> Any:
        from sea_bake.verification.onnx_answers import Decoder

        try:
            return Decoder({"device": self.device, **request})
        except Exception as error:
            raise CheckpointError(f"ONNX Runtime cannot open {self._graph}: {first_line_of(error)}") from error

    @cached_property
    def _bare(self) -> Any:
        """The same weights without the edit."""
        path = Path(self._scratch.name) / self._graph.name
        path.write_bytes(bypass(self._graph, self.record.sea_nodes))
        return self._open({"graph": str(path), "weights": str(self._graph.parent)})

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What the folder says of ends and positions."""
        generation = self.folder / "generation_config.json"
        return read_json(self.folder / "config.json") | (read_json(generation) if generation.is_file() else {})

    def check_format(self, form: PromptFormat) -> None:
        rendered(self.tokenizer, "Is it so?", form)

    def reply(
        self, side: str, prompt: str, *, before: Turns = (), strength: float = 1.0, sampling: Sampling, say: Say
    ) -> Reply:
        import numpy as np

        self.check(side, strength)
        strength = strength if side == EDITED else 0.0
        decoder = self._decoder
        if self.record.strength:
            decoder.extra = {"sea_strength": np.array([strength], dtype=np.float32)}
        elif strength == 0 and self.record.sea_nodes:
            decoder = self._bare
        ids = list(tokens_of(self.tokenizer, prompt, before, self.form).ids)
        count = room_for(len(ids), self._facts.get("max_position_embeddings"), sampling.max_new_tokens)
        told = self._facts.get("eos_token_id")
        ends = {*(told if isinstance(told, list) else [told]), self.tokenizer.eos_token_id}
        draws, streamer = np.random.default_rng(sampling.seed + len(before)), Streamer(self.tokenizer, say)
        streamer.put(np.array(ids))
        said, new, cache, length = 0, ids, None, 0
        try:
            while said < count:
                length += len(new)
                logits, cache = decoder([new], np.ones((1, length)), cache)
                new = [_next(logits[0, -1], sampling.temperature, draws)]
                said += 1
                if new[0] in ends:
                    break
                streamer.put(np.array(new))
        finally:
            streamer.end()  # what it holds back of a last word
        return Reply(streamer.text, said, new[0] in ends)

    def close(self) -> None:
        self._scratch.cleanup()


def _next(logits: Any, temperature: float, draws: Any) -> int:
    import numpy as np

    if temperature == 0:
        return int(logits.argmax())
    odds = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return int(draws.choice(len(odds), p=odds / odds.sum()))
