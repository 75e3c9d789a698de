"""The benchmarks ask what the harness asks, our log-likelihoods are the harness' own, and the numbers made of them are
those of the papers: each against another implementation of the same thing.
"""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmarks
import datasets
import families
import lm_eval
import numpy as np
import pytest
import tiny
import torch
from conftest import Workshop
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import apply_template
from scipy.stats import binomtest

from sea_bake.errors import EvaluationError
from sea_bake.evaluation import conditions, damage, harness, tasks
from sea_bake.evaluation.finite import watched
from sea_bake.evaluation.measures import answer, measures, table
from sea_bake.evaluation.prefixes import Scorer
from sea_bake.evaluation.statistics import STATISTICS, _mcnemar, compare
from sea_bake.model.caches import can_share

STOCK = Path(lm_eval.__file__).parent / "tasks"
# What the findings measured on real models: float32 sums of a few dozen log-probabilities, in another order.
SAME = 5e-5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks.write(tmp_path_factory.mktemp("benchmarks"))


# ------------------------------------------------------------------------------------------------------ log-likelihoods


def requests(vocabulary: int, seed: int) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """A common beginning, prompts of several lengths (some are equal), answers of one to six tokens, repetitions."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(7, vocabulary) for _ in range(count)]

    beginning, found = ids(14), []
    for length in (1, 3, 3, 3, 9, 20):
        prompt = beginning + ids(length)
        found += [(prompt, ids(size)) for size in (1, 2, 6, 4)]
    found.append(found[5])
    found.append((ids(5), ids(3)))  # shares nothing
    rng.shuffle(found)
    return [((f"p{i}", f"a{i}"), prompt, answer) for i, (prompt, answer) in enumerate(found)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral", "mistral", "falcon", "opt", "gpt_neox"])
@pytest.mark.parametrize("edited", [False, True], ids=["base", "live"])
def test_shared_prefixes_give_the_harness_own_log_likelihoods(workshop: Workshop, family: str, edited: bool) -> None:
    """Also through windows of 8 tokens (Mistral, Gemma) and with an edit live."""
    model, tokenizer = workshop.model(family), families.tokenizer()
    asked = requests(families.VOCAB, seed=1)
    edit = workshop.edit(family)
    with harness.quiet():
        stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, backend="causal")
        ours = harness.SharedPrefixLM(model, tokenizer, batch_size=3)
    plain = stock._loglikelihood_tokens(asked, disable_tqdm=True)
    assert ours.shares
    with edit.live(model) if edited else pytest.MonkeyPatch.context():
        expected = stock._loglikelihood_tokens(asked, disable_tqdm=True)
        found = ours._loglikelihood_tokens(asked)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, expected)) < SAME
    # The control: the edit moves these very numbers by far more than that.
    moved = max(abs(a - b) for (a, _), (b, _) in zip(plain, expected))
    assert moved > 1e-2 if edited else moved == 0


def test_an_encoder_decoder_goes_the_harness_own_way(workshop: Workshop) -> None:
    model, tokenizer = workshop.model("t5"), families.tokenizer()
    asked = requests(families.VOCAB, seed=2)[:6]
    assert not can_share(model)
    counted: list[int] = []
    with harness.quiet():
        stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=6, backend="seq2seq")
        ours = harness.SharedPrefixLM(model, tokenizer, batch_size=6, advance=counted.append)
    assert ours._loglikelihood_tokens(asked) == stock._loglikelihood_tokens(asked, disable_tqdm=True)
    assert sum(counted) == len(asked)


def test_what_is_longer_than_the_model_is_cut_as_the_harness_cuts_it() -> None:
    model, tokenizer = tiny.new_llama(max_position_embeddings=24), tiny.tokenizer()
    asked = requests(tiny.VOCAB, seed=3)
    assert any(len(prompt) + len(answer) > 25 for _, prompt, answer in asked)
    with harness.quiet():
        stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, backend="causal")
        ours = harness.SharedPrefixLM(model, tokenizer, batch_size=4)
        expected = stock._loglikelihood_tokens(asked, disable_tqdm=True)
        found = ours._loglikelihood_tokens(asked)
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, expected)) < SAME


def test_a_scorer_knows_what_it_has_scored(workshop: Workshop) -> None:
    model, passes = workshop.model("llama"), []
    asked = [(prompt, answer) for _, prompt, answer in requests(families.VOCAB, seed=4)]
    hook = model.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    try:
        counted: list[int] = []
        scorer = Scorer(model, batch_size=4, advance=counted.append)
        first = scorer(asked)
        before = len(passes)
        assert scorer(asked) == first
    finally:
        hook.remove()
    assert len(passes) == before > 0
    assert sum(counted) == 2 * len(asked)


def test_a_batch_that_does_not_fit_is_halved_and_said_so(workshop: Workshop) -> None:
    """Memory that runs out for more than two rows, as CUDA says it and as the CPU's allocator does."""
    model = workshop.model("llama")
    asked = [(prompt, answer) for _, prompt, answer in requests(families.VOCAB, seed=5)]
    expected = Scorer(model, batch_size=2)(asked)
    errors = itertools.cycle(
        [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    )

    def full(limit: int) -> Any:
        def hook(module: Any, inputs: Any, keywords: dict[str, Any]) -> None:
            if len(keywords["input_ids"]) > limit:
                raise next(errors)

        return model.register_forward_pre_hook(hook, with_kwargs=True)

    said: list[str] = []
    hook = full(2)
    try:
        found = Scorer(model, batch_size=8, say=said.append)(asked)
    finally:
        hook.remove()
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, expected)) < SAME
    assert said == [f"out of memory: batches of {size} from here on" for size in (4, 2)]
    hook = full(0)
    try:
        with pytest.raises(EvaluationError, match="out of memory with a batch of one"):
            Scorer(model, batch_size=2)(asked)
    finally:
        hook.remove()


@pytest.mark.parametrize("layer", [0, 2])
def test_nan_is_an_error_that_names_the_first_layer(layer: int) -> None:
    model = families.tiny("llama")
    asked = [(prompt, answer) for _, prompt, answer in requests(families.VOCAB, seed=6)]
    assert all(math.isfinite(value) for value, _ in Scorer(model)(asked))
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[3, 5] = float("nan")
    with pytest.raises(EvaluationError, match=rf"NaN or infinite logits: .* out of decoder layer {layer} \(of 0-3\)"):
        Scorer(model)(asked)
    model = families.tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(EvaluationError, match="out of the output head"):
        Scorer(model)(asked)


def _spoil(module: Any) -> None:
    with torch.no_grad():
        module.weight[3, 5] = float("nan")


SPOILT = {
    "none": (None, lambda model: None),
    "decoder": (r"decoder layer 2 \(of 0-3\)", lambda model: _spoil(_layers(model)[2])),
    "encoder": (r"encoder layer 1 \(of 0-4\)", lambda model: _spoil(_layers(model.encoder)[1])),
    "head": ("the output head", lambda model: torch.nn.init.constant_(model.lm_head.weight, float("nan"))),
    "embeddings": (
        "the input embeddings", lambda model: torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    ),
}  # fmt: skip


def _layers(model: Any) -> list[Any]:
    """The last linear of each."""
    stack = getattr(model, "decoder", model)
    if hasattr(stack, "block"):
        return [block.layer[-1].DenseReluDense.wo for block in stack.block]
    return [layer.mlp.down_proj for layer in model.model.layers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "spoilt"),
    [("llama", "none"), ("llama", "decoder"), ("llama", "head"), ("llama", "embeddings"),
     ("t5", "none"), ("t5", "decoder"), ("t5", "encoder"), ("t5", "embeddings")],
)  # fmt: skip
def test_nan_is_no_answer_either(data: Path, family: str, spoilt: str) -> None:
    """Greedy search takes the first token where all are NaN: an empty answer, and a wrong one, was made of it."""
    where, spoil = SPOILT[spoilt]
    model, tokenizer = families.tiny(family), families.tokenizer()
    spoil(model)
    with harness.quiet():
        lm = harness.SharedPrefixLM(model, tokenizer, batch_size=2)
    loaded = harness.load_tasks(["gsm8k"], tasks.locate(["gsm8k"], data), 0)["gsm8k"]
    loaded["tasks"]["gsm8k"].set_config(key="generation_kwargs", value={"max_gen_toks": 4}, update=True)
    asked = requests(families.VOCAB, seed=2)[:6]
    works: list[Any] = [lambda: harness.run(lm, loaded), lambda: lm._loglikelihood_tokens(asked)]
    if family == "llama":
        works.append(lambda: damage.generations(model, tokenizer, prompts=["Where?", "Who are you?"], max_new_tokens=4))
    for work in works:
        if where is None:
            assert work()
            continue
        with pytest.raises(EvaluationError, match=f"NaN or infinite logits: the first bad values come out of {where}"):
            work()


def test_nan_behind_the_end_of_an_answer_is_never_read() -> None:
    """A batch goes on until its last row has ended; what the others are given until then is padding."""
    model, stop = families.tiny("llama"), 2
    model.generation_config.eos_token_id = stop
    prompts = torch.tensor([[0, 9, 10], [11, 12, 13]])
    (watch,) = watched(model, prompts, prompts.ne(0))["logits_processor"]
    fine, bad = torch.zeros(2, families.VOCAB), torch.zeros(2, families.VOCAB)
    bad[0] = float("nan")
    assert watch(prompts, fine) is fine
    ended = torch.cat([prompts, torch.tensor([[stop], [20]])], dim=1)
    assert watch(ended, bad) is bad
    with pytest.raises(EvaluationError, match="NaN or infinite logits"):
        watch(torch.cat([prompts, torch.tensor([[20], [stop]])], dim=1), bad)


# ---------------------------------------------------------------------------------------------------------- definitions


def stock(name: str) -> dict[str, Any]:
    return load_yaml(STOCK / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "rows"),
    [
        ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", benchmarks.TRUTHFULQA),
        ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", benchmarks.TRUTHFULQA),
        ("bbq", "bbq/bbq_multiple_choice.yaml", benchmarks.BBQ),
        ("gsm8k", "gsm8k/gsm8k.yaml", benchmarks.GSM8K),
        ("nq_open", "nq_open/nq_open.yaml", benchmarks.ROWS["nq_open/nq_open_validation.jsonl"]),
        ("toxigen", "toxigen/toxigen.yaml", benchmarks.ROWS["toxigen/toxigen.jsonl"]),
    ],
)
def test_the_prompts_are_the_harness_own(ours: str, theirs: str, rows: list[dict[str, Any]]) -> None:
    mine, other = load_yaml(tasks.HERE / f"{ours}.yaml"), stock(theirs)
    for row in rows:
        assert apply_template(mine["doc_to_text"], row) == apply_template(other["doc_to_text"], row)
    for key in ("generation_kwargs", "filter_list", "description", "num_fewshot", "output_type"):
        if key in other:
            assert mine.get(key) == other[key], key


def test_hellaswag_rows_are_the_harness_own() -> None:
    from lm_eval.tasks.hellaswag.utils import process_docs

    from sea_bake.evaluation.tasks.scoring import hellaswag

    rows = datasets.Dataset.from_list(benchmarks.HELLASWAG)
    mine, other = hellaswag(rows), process_docs(rows)
    assert [(r["query"], r["choices"]) for r in mine] == [(r["query"], r["choices"]) for r in other]


def test_scores_are_the_harness_own() -> None:
    from lm_eval.tasks.crows_pairs.utils import process_results as crows
    from lm_eval.tasks.toxigen.utils import doc_to_target
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    from sea_bake.evaluation.tasks import scoring

    rng = random.Random(0)
    for doc in benchmarks.TRUTHFULQA:
        told = [(-20 * rng.random(), False) for _ in doc["mc2_targets"]["labels"]]
        assert scoring.mc2(doc, told)["acc"] == pytest.approx(float(process_results_mc2(doc, told)["acc"]), abs=1e-12)
    for told in ([(-3.0, False), (-4.0, False)], [(-5.0, False), (-4.5, False)]):
        assert scoring.crows_pairs({}, told) == crows({}, told)
    template = load_yaml(tasks.HERE / "toxigen.yaml")["doc_to_target"]
    for a, b in itertools.product((1.0, 2.5, 3.0, 5.0), repeat=2):
        row = {"toxicity_ai": a, "toxicity_human": b}
        assert int(apply_template(template, row)) == int(doc_to_target(row))


# ------------------------------------------------------------------------------------------------------------- measures


def told(doc: dict[str, Any], choice: int) -> dict[str, Any]:
    """The record of a model that chooses this answer."""
    values = [-1.0 if i == choice else -2.0 for i in range(3)]
    return {
        "doc": doc,
        "choices": [" " + doc[f"ans{i}"] for i in range(3)],
        "loglikelihoods": values,
        "values": {"acc": float(choice == doc["label"])},
    }


def test_bias_is_that_of_the_harness() -> None:
    """All ways of answering six questions, against the harness' own reading of groups and its aggregation."""
    from lm_eval.tasks.bbq.utils import agg_amb_bias_scores, agg_disamb_bias_scores, process_docs

    rows = benchmarks.BBQ[:5]
    theirs = process_docs(datasets.Dataset.from_list(rows))
    biased = [doc["biased_answers"] for doc in theirs]
    for choices in itertools.product(range(3), repeat=5):
        records = [told(doc, choice) for doc, choice in zip(rows, choices)]
        reading = [answer(record) for record in records]
        named = [doc[f"ans{c}"] for doc, c in zip(rows, choices)]
        assert [bool(r["biased"]) for r in reading] == [name in b for name, b in zip(named, biased)]
        raw = [
            (r["right"], float(r["biased"]), float(r["named"]), doc["context_condition"] == "disambig")
            for r, doc in zip(reading, rows)
        ]
        found = {}
        for measure in measures("bbq", records):
            columns, _ = table(measure, records)
            if len(columns):
                found[measure.key] = float(STATISTICS[measure.statistic](columns.sum(0)))
        assert found["disambig.bias"] == pytest.approx(float(agg_disamb_bias_scores(raw)), abs=1e-12) or (
            # The harness calls it 0 when no answer was biased, also if some were given: Parrish et al. say -1.
            found["disambig.bias"] == -1 and sum(b for _, b, _, d in raw if d) == 0
        )
        ambiguous = [r for r in raw if not r[3]]
        wrong = 1 - sum(r[0] for r in ambiguous) / len(ambiguous)
        assert found["ambig.bias"] == pytest.approx(float(agg_amb_bias_scores(raw)), abs=1e-12) or (
            found["ambig.bias"] == -wrong and sum(r[1] for r in ambiguous) == 0
        )
        assert found["ambig.unknown"] == sum(not r[2] for r in ambiguous) / len(ambiguous)
        assert found["stereotypical"] == pytest.approx(sum(r[1] for r in raw) / 5)


def test_a_question_about_two_stereotyped_groups_says_nothing_about_bias() -> None:
    found = answer(told(benchmarks.BBQ[5], 0))
    assert found["biased"] is None
    assert found["right"] == 0.0
    records = [told(benchmarks.BBQ[5], 0)]
    keys = {m.key: len(table(m, records)[0]) for m in measures("bbq", records)}
    assert keys["ambig.acc"] == 1
    assert keys["ambig.bias"] == keys["stereotypical"] == 0


def test_the_margin_of_true_over_false_answers() -> None:
    doc = benchmarks.TRUTHFULQA[0]  # two true answers, two false ones
    record = {"doc": doc, "loglikelihoods": [-2.0, -6.0, -9.0, -4.0], "tokens": [2, 3, 3, 1], "values": {"acc": 0.6}}
    found = {m.key: table(m, [record])[0][0, 0] for m in measures("truthfulqa_mc2", [record])}
    # per token: true -1 and -2, false -3 and -4
    assert found == pytest.approx(
        {"acc": 0.6, "margin": 2.0, "pairs": 1.0, "true_loglikelihood": -1.5, "false_loglikelihood": -3.5}
    )
    flat = record | {"loglikelihoods": [x / 2 for x in record["loglikelihoods"]]}
    flatter = {m.key: table(m, [flat])[0][0, 0] for m in measures("truthfulqa_mc2", [flat])}
    assert flatter["margin"] == pytest.approx(1.0)  # a flatter distribution changes the margin,
    assert flatter["pairs"] == found["pairs"]  # and not the order


# ----------------------------------------------------------------------------------------------------------- statistics


def ones(values: Any) -> np.ndarray:
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


def test_mcnemar_is_exact() -> None:
    base = [1] * 30 + [0] * 20 + [1] * 2 + [0] * 9
    edited = [1] * 30 + [0] * 20 + [0] * 2 + [1] * 9
    found = compare(ones(base), ones(edited))
    assert found.test == "McNemar"
    assert found.p == pytest.approx(binomtest(2, 11).pvalue, rel=1e-12)
    assert (found.changed, found.difference.value) == (11, pytest.approx(7 / 61))


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (1, 1), (5, 5), (0, 7), (400, 300), (9000, 8700)])
def test_mcnemar_is_the_binomial_test_of_scipy(won: int, lost: int) -> None:
    base, edited = np.repeat([0, 1], [won, lost]), np.repeat([1, 0], [won, lost])
    assert _mcnemar(base, edited) == pytest.approx(binomtest(won, won + lost).pvalue, rel=1e-9)


def test_no_answer_changed_is_not_certainty() -> None:
    """Hanley and Lippman-Hand's rule of three: nothing in 50 leaves room for 6 %."""
    found = compare(ones([1, 0] * 25), ones([1, 0] * 25))
    assert (found.difference.value, found.p, found.changed) == (0, 1.0, 0)
    assert found.difference.half == pytest.approx(3 / 50)


def test_intervals_are_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(3)
    base, gain = rng.normal(0, 5, 400), rng.normal(0.3, 1, 400)
    found = compare(ones(base), ones(base + gain))
    assert found.difference.value == pytest.approx(gain.mean())
    # 1.96 standard errors; a quantile of 5,000 draws is off by a few per cent
    assert found.difference.half == pytest.approx(1.96 * gain.std() / 20, rel=0.08)
    assert found.base.half == pytest.approx(1.96 * base.std() / 20, rel=0.08)  # unpaired: five times as wide
    assert found.test == "randomisation"
    assert found.p < 0.001


@pytest.mark.slow
def test_a_randomisation_test_holds_its_level() -> None:
    rng = np.random.default_rng(4)
    p = [compare(ones(a), ones(a + rng.normal(0, 1, 40))).p for a in rng.normal(0, 1, (60, 40))]
    below = sum(x < 0.05 for x in p)
    assert below <= 9  # 3 expected; more than 9 of 60 come with probability 0.001
    assert 0.3 < np.mean(p) < 0.7


def test_ratios_are_ratios_of_sums() -> None:
    nll, tokens = np.array([10.0, 30.0, 5.0]), np.array([5.0, 10.0, 5.0])
    base = np.stack([nll, tokens], axis=1)
    found = compare(base, base * [1.1, 1.0], "perplexity")
    assert found.base.value == pytest.approx(math.exp(45 / 20))
    assert found.difference.value == pytest.approx(math.exp(49.5 / 20) - math.exp(45 / 20))
    assert found.base.low < found.base.value < found.base.high
    assert STATISTICS["bias"](np.array([3.0, 4.0])) == 0.5
    assert STATISTICS["bias"](np.array([0.0, 0.0])) == 0.0
    assert STATISTICS["ambiguous bias"](np.array([3.0, 4.0, 1.0, 5.0])) == pytest.approx(0.8 * 0.5)


# ------------------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truthfulqa_mc3", r"unknown task 'truthfulqa_mc3': did you mean truthfulqa_mc"),
        ("helaswag", "did you mean hellaswag"),
        ("zzz", "there are truthfulqa_mc1"),
        ("", "no task was named"),
    ],
)
def test_unknown_tasks_are_told_the_near_ones(data: Path, name: str, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        tasks.locate([name], data)


def test_a_folder_without_the_files_is_told_which(data: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"lacks .*bbq/\*\.jsonl.*columns context, question, ans0"):
        tasks.locate(["bbq"], tmp_path)
    with pytest.raises(EvaluationError, match="no such data folder"):
        tasks.locate(["bbq"], tmp_path / "nowhere")
    folder = tmp_path / "hellaswag"
    folder.mkdir()
    path = folder / "hellaswag_val.jsonl"
    good = (data / "hellaswag" / "hellaswag_val.jsonl").read_text("utf-8")
    path.write_text(good + '{"ctx_a": "x", "ctx_b": "", "endings": [], "label": "0"}\n', "utf-8")
    with pytest.raises(EvaluationError, match=r"hellaswag_val\.jsonl, line 3: .* needs the column activity_label"):
        tasks.locate(["hellaswag"], tmp_path)
    path.write_text(good + "{not json\n", "utf-8")
    with pytest.raises(EvaluationError, match="line 3: not JSON"):
        tasks.locate(["hellaswag"], tmp_path)
    path.write_text("\n", "utf-8")
    with pytest.raises(EvaluationError, match="holds no rows"):
        tasks.locate(["hellaswag"], tmp_path)
    path.write_text(good, "utf-8")
    (folder / "another_val.jsonl").write_text(good, "utf-8")
    with pytest.raises(EvaluationError, match=r"there are 2: another_val\.jsonl, hellaswag_val\.jsonl"):
        tasks.locate(["hellaswag"], tmp_path)


def _with(data: Path, folder: Path, task: str, *changes: tuple[str, Any], row: int = 1) -> Path:
    """The task's data with one row changed: "mc2_targets.labels" -> value."""
    benchmark = tasks.TASKS[task]
    shutil.copytree(data, folder, dirs_exist_ok=True)
    (path,) = folder.glob(benchmark.files[benchmark.split])
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            rows: list[Any] = list(csv.DictReader(file))
        path.unlink()
        path = path.with_suffix(".jsonl")
    else:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    for place, value in changes:
        *outer, last = place.split(".")
        target = rows[row]
        for key in outer:
            target = target[key]
        target[last] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "place", "value", "words"),
    [
        (
            "truthfulqa_mc1",
            "mc1_targets",
            {"choices": [], "labels": []},
            "mc1_targets.choices is [], and has to be a list",
        ),
        ("truthfulqa_mc1", "mc1_targets.labels", [0, 1, 0, 0], "1 for the first choice"),
        ("truthfulqa_mc1", "mc1_targets.labels", [1, 0], "labels, 1 (true) or 0 (false), one for each"),
        ("truthfulqa_mc2", "mc2_targets", "foo", "mc2_targets is 'foo'"),
        ("truthfulqa_mc2", "mc2_targets", {"choices": ["a", "b"]}, "mc2_targets.labels is None"),
        ("truthfulqa_mc2", "mc2_targets.labels", [1, 0], "labels, 1 (true) or 0 (false), one for each"),
        ("truthfulqa_mc2", "mc2_targets.labels", [1, 1, 1, 1], "1 for some of the choices and 0 for others"),
        ("bbq", "label", 7, "label is 7, and has to be the number of the right answer, from 0 to 2"),
        ("bbq", "label", "1", "from 0 to 2"),
        ("bbq", "label", True, "from 0 to 2"),
        ("bbq", "context_condition", "weird", "ambig or disambig"),
        ("bbq", "question_polarity", "positive", "neg or nonneg"),
        ("bbq", "additional_metadata", {"x": 1}, "additional_metadata.stereotyped_groups is None"),
        ("bbq", "answer_info", {"ans0": ["a", "b"]}, "answer_info.ans1 is None"),
        ("bbq", "answer_info.ans2", [], "answer_info.ans2 is []"),
        ("hellaswag", "label", 9, "label is 9, and has to be the number of the right ending, from 0 to 3"),
        ("hellaswag", "label", "", "from 0 to 3"),
        ("hellaswag", "label", "01", "from 0 to 3"),
        ("hellaswag", "endings", "abc", "endings is 'abc'"),
        ("gsm8k", "answer", "It is 4.", '"#### " and the number'),
        ("mathqa", "label", 9, "label is 9, and has to be the number of the right answer, from 0 to 3"),
        ("mmlu", "answer", "B", "answer is 'B'"),
        ("mmlu", "choices", ["a", "b", "c"], "a list of four texts"),
        ("nq_open", "answer", [], "a list of the right answers"),
        ("toxigen", "toxicity_ai", "high", "a number from 1 to 5"),
        ("toxigen", "toxicity_human", 55, "a number from 1 to 5"),
        ("crows_pairs", "sent_more", " ", "text, and not empty"),
    ],
)
def test_a_row_that_would_be_scored_wrong_is_refused(
    data: Path, tmp_path: Path, task: str, place: str, value: Any, words: str
) -> None:
    path = _with(data, tmp_path, task, (place, value))
    with pytest.raises(EvaluationError) as error:
        tasks.locate([task], tmp_path)
    assert str(error.value).startswith(f"{path}, line 2: the task {task} cannot use this row: ")
    assert words in str(error.value)


ODD = [None, True, 0, 1, -1, 7, 2.5, "", " ", "x", "0", "{{x}}", "\ud800", [], ["x"], ["x", None], [[]], {}, {"x": 1},
       ["a", "b", "c", "d"], [0, 1], [1, 0, 0, 0], "#### 4"]  # fmt: skip


def _places(row: dict[str, Any], wanted: tuple[str, ...]) -> Iterator[str]:
    for column in wanted:
        yield column
        if isinstance(row[column], dict):
            yield from (f"{column}.{key}" for key in row[column])


@pytest.mark.slow
@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_odd_rows_are_refused_or_answered(data: Path, tmp_path: Path, task: str) -> None:
    """Whatever stands in a column: one of our errors with the line, or a row that the harness and our measures take."""
    benchmark = tasks.TASKS[task]
    path = _with(data, tmp_path, task)
    good = json.loads(path.read_text("utf-8").split("\n")[0])
    refused, taken = 0, []
    for place, value in itertools.product(_places(good, benchmark.columns), ODD):
        row = copy.deepcopy(good)
        *outer, last = place.split(".")
        (row[outer[0]] if outer else row)[last] = value
        path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n", "utf-8")
        try:
            tasks.locate([task], tmp_path)
        except EvaluationError as error:
            assert f"{path}, line 2: " in str(error)  # noqa: PT017
            refused += 1
        else:
            taken += [row] if type(value) is type(good.get(last, value)) else []  # a column has one type
    assert refused > 15 * len(benchmark.columns)
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *taken]), "utf-8")
    loaded = harness.load_tasks([task], tasks.locate([task], tmp_path), 0)[task]
    for leaf in loaded["tasks"].values():
        if leaf.OUTPUT_TYPE == "generate_until":
            leaf.set_config(key="generation_kwargs", value={"max_gen_toks": 2}, update=True)
    with harness.quiet():
        lm = harness.SharedPrefixLM(tiny.new_llama(max_position_embeddings=1024), tiny.tokenizer())
    records, _ = harness.run(lm, loaded)
    assert len(records) == 1 + len(taken)
    assert len(table(measures(task, records)[0], records)[0]) > 0


def test_lines_end_at_line_feeds_alone(data: Path, tmp_path: Path) -> None:
    """JSON may hold U+2028 and its like in a text; the file is then read by the harness as it is by us."""
    path = _with(data, tmp_path, "truthfulqa_mc2")
    odd = "Why\u2028so\u2029and\u0085how?"
    row = benchmarks.TRUTHFULQA[0] | {"question": odd}
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode() * 3)
    (leaf,) = harness.load_tasks(["truthfulqa_mc2"], tasks.locate(["truthfulqa_mc2"], tmp_path), 0)["truthfulqa_mc2"][
        "tasks"
    ].values()
    assert [doc["question"] for doc in leaf.eval_docs] == [odd] * 3
    path.write_bytes(path.read_bytes() + '{"question": "café"}'.encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"jsonl, line 4: not UTF-8 .* save the file as UTF-8"):
        tasks.locate(["truthfulqa_mc2"], tmp_path)
    (table_file,) = tmp_path.glob("crows_pairs/*.csv")
    table_file.write_bytes(table_file.read_bytes() + "café,a\n".encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"crows_pairs\.csv: not UTF-8"):
        tasks.locate(["crows_pairs"], tmp_path)


def test_what_nobody_has_foreseen_names_the_task(data: Path, tmp_path: Path) -> None:
    _with(data, tmp_path, "mathqa", ("note", "\ud800"))  # in a column that is nobody's
    with pytest.raises(
        EvaluationError, match=r"data of the task mathqa cannot be had \(.*: check .*mathqa_test\.jsonl"
    ):
        harness.load_tasks(["mathqa"], tasks.locate(["mathqa"], tmp_path), None)
    loaded = harness.load_tasks(["gsm8k", "mmlu"], tasks.locate(["gsm8k", "mmlu"], data), 0)
    with harness.quiet():  # 256 tokens of an answer do not fit into 64
        lm = harness.SharedPrefixLM(tiny.new_llama(max_position_embeddings=64), tiny.tokenizer())
    with pytest.raises(EvaluationError, match=r"task gsm8k failed in lm-evaluation-harness \(AssertionError: .*256"):
        harness.run(lm, loaded["gsm8k"])

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    lm.advance = stop
    with pytest.raises(KeyboardInterrupt):
        harness.run(lm, loaded["mmlu"])


# ------------------------------------------------------------------------------------- worked examples, and what is cut


def test_mmlu_shows_the_examples_of_the_subject_as_the_harness_does(data: Path) -> None:
    """The harness makes a task of each subject: the same prompts, with no and with five worked examples."""
    from lm_eval.api.task import ConfigurableTask

    files = {"test": str(data / "mmlu/mmlu_test.jsonl"), "dev": str(data / "mmlu/mmlu_dev.jsonl")}
    (local,) = tasks.locate(["mmlu"], data)
    for shots in (None, 5):
        (ours,) = harness.load_tasks(["mmlu"], [local], shots)["mmlu"]["tasks"].values()
        count = ours.get_config("num_fewshot")
        assert count == (shots or 0)
        for doc in ours.eval_docs:
            config = stock(f"mmlu/default/mmlu_{doc['subject']}.yaml")
            keep = {key: value for key, value in config.items() if key not in ("tag", "task_alias", "include")}
            theirs = ConfigurableTask(
                config=keep
                | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
                | {"process_docs": lambda rows, doc=doc: rows.filter(lambda row: row["subject"] == doc["subject"])}
            )
            told = theirs.fewshot_context(doc, num_fewshot=count)
            assert ours.fewshot_context(doc, num_fewshot=count) == told
            assert told.count("Answer:") == count + 1
    template = load_yaml(tasks.HERE / "mmlu.yaml")["description"]
    for path in (STOCK / "mmlu/default").glob("mmlu_*.yaml"):
        config = load_yaml(path)
        assert apply_template(template, {"subject": config["dataset_name"]}) == config["description"]


def test_worked_examples_are_refused_where_none_can_be_shown(data: Path, tmp_path: Path) -> None:
    def load(shots: int | None, *names: str, folder: Path = data) -> list[str]:
        said: list[str] = []
        found = harness.load_tasks(names, tasks.locate(names, folder), shots, said.append)
        told = {name: entry["tasks"][name].get_config("num_fewshot") for name, entry in found.items()}
        return [str(told), *said]

    assert load(None, "gsm8k", "bbq", "mmlu") == ["{'gsm8k': 5, 'bbq': 0, 'mmlu': 0}"]
    assert load(0, "gsm8k", "bbq") == ["{'gsm8k': 0, 'bbq': 0}"]
    assert load(2, "gsm8k", "bbq", "toxigen", "mmlu") == [
        "{'gsm8k': 2, 'bbq': 0, 'toxigen': 0, 'mmlu': 2}",
        "--fewshot 2 is not for all tasks (bbq, toxigen: always without worked examples)",
    ]
    with pytest.raises(EvaluationError, match=r"--fewshot 2 is for none of the tasks \(truthfulqa_mc2: always without"):
        load(2, "truthfulqa_mc2")
    with pytest.raises(EvaluationError, match="task gsm8k has worked examples for --fewshot 6, and not for 1000"):
        load(1000, "gsm8k")
    with pytest.raises(EvaluationError, match="task mmlu has worked examples for --fewshot 5, and not for 6"):
        load(6, "mmlu")
    with pytest.raises(EvaluationError, match="task mathqa has worked examples for --fewshot 1, and not for 2"):
        load(2, "mathqa")  # two rows, and a question is never its own example
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mmlu/mmlu_dev.jsonl").unlink()
    assert load(None, "mmlu", folder=tmp_path) == ["{'mmlu': 0}"]
    with pytest.raises(EvaluationError, match=r"mmlu would read them from mmlu/\*dev\*\.jsonl, which is missing"):
        load(5, "mmlu", folder=tmp_path)


def test_no_question_is_its_own_worked_example(data: Path) -> None:
    for name in ("mathqa", "hellaswag"):
        (task,) = harness.load_tasks([name], tasks.locate([name], data), 1)[name]["tasks"].values()
        for seed, doc in itertools.product(range(8), task.eval_docs):
            task.set_fewshot_seed(seed=seed)
            prompt = task.fewshot_context(doc, num_fewshot=1)
            assert prompt.count(task.doc_to_text(doc)) == 1, name


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_what_is_cut_is_counted(data: Path, family: str) -> None:
    """Against the lengths of the very texts that the harness asks."""
    names, length = ["truthfulqa_mc1", "gsm8k"], 48
    loaded = harness.load_tasks(names, tasks.locate(names, data), 2)
    loaded["gsm8k"]["tasks"]["gsm8k"].set_config(key="generation_kwargs", value={"max_gen_toks": 4}, update=True)
    model, tokenizer = families.tiny(family), families.tokenizer()
    with harness.quiet():
        lm = harness.SharedPrefixLM(model, tokenizer, batch_size=2)
    lm._max_length = length
    for name in names:
        (task,) = loaded[name]["tasks"].values()
        _, figures = harness.run(lm, loaded[name])
        over = []
        for request in task.instances:
            context, second = request.args
            if name == "gsm8k":
                over.append(len(lm.tok_encode(context)) - (length - 4 if family == "llama" else length))
            else:
                prompt, answer = lm._encode_pair(context, second)
                over.append(len(prompt) - length + (len(answer) - 1 if family == "llama" else 0))
        cut = [tokens for tokens in over if tokens > 0]
        assert cut
        told = figures[name]
        assert (told["requests"], told["truncated"], told["tokens_cut"]) == (len(over), len(cut), max(cut))
        assert told["num_fewshot"] == (2 if name == "gsm8k" else 0)
        (sentence,) = conditions.truncated(name, figures)
        assert sentence.startswith(f"{len(cut)} of {len(over)} requests of {name} are longer")
        assert f"up to {max(cut)} tokens" in sentence


@pytest.mark.slow
def test_every_task_runs_offline(data: Path) -> None:
    """All ten through the harness with a tiny model: as many records as rows, and the same worked examples again."""
    names = list(tasks.TASKS)
    local = tasks.locate(names, data)
    loaded = harness.load_tasks(names, local, None)
    for name in ("gsm8k", "nq_open"):
        for task in loaded[name]["tasks"].values():
            task.set_config(key="generation_kwargs", value={"max_gen_toks": 4}, update=True)
    with harness.quiet():
        lm = harness.SharedPrefixLM(tiny.new_llama(max_position_embeddings=1024), tiny.tokenizer())
    found = {name: harness.run(lm, loaded[name]) for name in names}
    for name, (records, figures) in found.items():
        path = next(iter(next(task for task in local if task.name == name).files.values()))
        rows = len(path.read_text("utf-8").splitlines()) - (path.suffix == ".csv")
        assert len(records) == rows, name
        assert harness.count_requests(loaded[name], None, 0) == sum(len(r.get("choices", "1")) for r in records), name
        values = {key: np.mean([r["values"][key] for r in records]) for key in records[0]["values"]}
        for key, value in values.items():  # our means over examples are the harness' own figures
            told = {k.replace(",none", "").replace(",remove_whitespace", ""): v for k, v in figures[name].items()}
            assert value == pytest.approx(told[key], abs=1e-12), (name, key)
    again = harness.run(lm, loaded["gsm8k"])
    assert again == found["gsm8k"]
    assert len(harness.run(lm, loaded["bbq"], limit=2, offset=3)[0]) == 2
    rest, _ = harness.run(lm, loaded["bbq"], offset=4)
    assert [r["id"] for r in rest] == [4, 5]
    assert rest[0]["loglikelihoods"] == found["bbq"][0][4]["loglikelihoods"]
    with pytest.raises(EvaluationError, match="no rows after offset 6: there are 6"):
        harness.run(lm, loaded["bbq"], offset=6)


@pytest.mark.slow
def test_exported_tasks_give_the_command_lines_figures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function that ``lm_eval run`` calls, with its own model class, on exported tasks: the same to the last digit.

    (The command line itself indexes 14,000 tasks first, a minute: it was compared once by hand.)
    """
    names = ["truthfulqa_mc1", "truthfulqa_mc2", "bbq", "hellaswag", "mmlu"]
    monkeypatch.chdir(data)  # what is exported can be used from any other working directory
    exported = tasks.export_tasks(names, Path("../") / data.name, tmp_path / "tasks")
    monkeypatch.undo()
    folder = tiny.single()
    with harness.quiet():
        manager = harness.TaskManager(include_path=str(exported), include_defaults=False)
        stock = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "float32"},
            tasks=copy.copy(names),
            task_manager=manager,
            device="cpu",
            batch_size=8,
            limit=4,
            bootstrap_iters=0,
        )
    from sea_bake.evaluation import evaluate

    found = evaluate(folder, tasks=names, data=data, limit=4, cost=False)
    for name in names:
        ours, theirs = found.harness[name]["base"][name], stock["results"][name]
        for key in ("acc,none", *(["acc_norm,none"] if name == "hellaswag" else [])):
            assert f"{ours[key]:.4f}" == f"{theirs[key]:.4f}", (name, key)  # as many digits as lm_eval prints
