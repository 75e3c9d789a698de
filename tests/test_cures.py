"""Who follows the advice at the end of a refusal gets what was wanted: each case is refused, cured as the message
says, and then runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

INDEX, SINGLE, BIN = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
WRITER = "model.layers.1.self_attn.o_proj.weight"

Args = list[object]
# In a folder: what is wrong is made, and the command that is refused is given; then the advice is followed, and the
# command that has to run is given.
Case = Callable[[Path], Iterator[Args]]
CASES: dict[str, tuple[str, Case]] = {}


def case(advice: str) -> Callable[[Case], Case]:
    """``advice`` is the part of the message that is followed; the function's name is the test's."""

    def keep(make: Case) -> Case:
        CASES[make.__name__] = advice, make
        return make

    return keep


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_advice_works(name: str, tmp_path: Path) -> None:
    advice, make = CASES[name]
    folder = tmp_path / "input"
    folder.mkdir()
    steps = make(folder)
    verb, *args = next(steps)
    output = ["-o", tmp_path / "out"]
    ran = tiny.run(verb, *args, *output)
    assert ran.code == 2, ran
    assert advice in ran.message, ran.message
    assert not (tmp_path / "out").exists()
    verb, *args = next(steps)
    ran = tiny.run(verb, *args, *output)
    assert ran.code == 0, ran
    if verb == "bake" and not (Path(str(args[0])) / "adapter_config.json").exists():
        assert not same_answers(tmp_path / "out", Path(str(args[0])))  # it is edited


def same_answers(artefact: Path, base: Path) -> bool:
    from peft import PeftModel

    def answers(model: Any) -> Tensor:
        with torch.inference_mode():
            return model.eval()(torch.arange(3, 40)[None]).logits

    plain = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    before = answers(plain)
    if (artefact / "adapter_config.json").exists():
        return torch.equal(before, answers(PeftModel.from_pretrained(plain, artefact)))
    return torch.equal(before, answers(AutoModelForCausalLM.from_pretrained(artefact, trust_remote_code=True)))


def base_in(folder: Path, **config: Any) -> Path:
    base = tiny.changeable(tiny.single(), folder / "base")
    tiny.patch_json(base / "config.json", **config)
    return base


def in_shards(folder: Path) -> Path:
    return tiny.changeable(tiny.sharded(), folder / "base")


def rename_shard(base: Path, old: str, new: str) -> None:
    (base / old).rename(base / new)
    index = json.loads((base / INDEX).read_text())
    weight_map = {name: new if shard == old else shard for name, shard in index["weight_map"].items()}
    tiny.patch_json(base / INDEX, weight_map=weight_map)


def first_shard(base: Path) -> str:
    return min(path.name for path in base.glob("*.safetensors"))


def bake(base: Path, *more: object) -> Args:
    return ["bake", base, tiny.edit_file(), *more]


def fit(base: Path, *more: object, data: Path | None = None) -> Args:
    alpha = [] if "--alpha" in more else ["--alpha", 1]  # a random model's KL need not reach the default budget
    return ["fit", base, "-d", data or tiny.demonstrations_file(), "--neutral", "prompt", *alpha, *more]


def triples(path: Path, change: Callable[[int, dict[str, str]], dict[str, str]]) -> Path:
    rows = [json.loads(line) for line in tiny.demonstrations_file().read_text().splitlines()]
    path.write_text("".join(json.dumps(change(i, row)) + "\n" for i, row in enumerate(rows)))
    return path


# ------------------------------------------------------------------------------------------------------------ the base


@case("remove that entry")
def a_tokenizer_that_names_code(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    tiny.patch_json(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    yield bake(base)
    tiny.patch_json(base / "tokenizer_config.json", auto_map=None)
    yield bake(base)


@case("remove it")
def a_kernel_of_the_hub(folder: Path) -> Iterator[Args]:
    yield bake(base := base_in(folder, _attn_implementation="somebody/kernel"))
    tiny.patch_json(base / "config.json", _attn_implementation=None)
    yield bake(base)


@case("rename the file, and remove that line")
def weights_of_another_name(folder: Path) -> Iterator[Args]:
    base = base_in(folder, transformers_weights="other.safetensors")
    (base / SINGLE).rename(base / "other.safetensors")
    yield bake(base)
    (base / "other.safetensors").rename(base / SINGLE)
    tiny.patch_json(base / "config.json", transformers_weights=None)
    yield bake(base)


@case("rename it, in the index too")
def a_shard_called_like_the_whole(folder: Path) -> Iterator[Args]:
    base = in_shards(folder)
    rename_shard(base, first_shard(base), SINGLE)
    yield bake(base)
    rename_shard(base, SINGLE, "model-first.safetensors")
    yield bake(base)


@case("rename it, in the index too")
def a_shard_called_like_ours(folder: Path) -> Iterator[Args]:
    base = in_shards(folder)
    rename_shard(base, first_shard(base), "model-sea.safetensors")
    yield bake(base, "--how", "insert")
    rename_shard(base, "model-sea.safetensors", "model-first.safetensors")
    yield bake(base, "--how", "insert")


@case("from_pretrained, then save_pretrained, writes safetensors")
def weights_in_a_pickle(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    torch.save(load_file(base / SINGLE), base / BIN)
    (base / SINGLE).unlink()
    yield bake(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder / "plain")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "plain")
    yield bake(folder / "plain")


@case("convert it first")
def weights_in_a_pickle_that_is_fitted(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    torch.save(load_file(base / SINGLE), base / BIN)
    (base / SINGLE).unlink()
    yield fit(base, "--dtype", "float32")
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base)
    yield fit(base, "--dtype", "float32")


@case("rename it to model.safetensors")
def weights_in_a_variant(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    (base / SINGLE).rename(base / "model.fp16.safetensors")
    yield fit(base)
    (base / "model.fp16.safetensors").rename(base / SINGLE)
    yield fit(base)


@case("download model.safetensors.index.json too")
def shards_without_an_index(folder: Path) -> Iterator[Args]:
    base = in_shards(folder)
    (base / INDEX).rename(folder / INDEX)
    yield bake(base)
    (folder / INDEX).rename(base / INDEX)
    yield bake(base)


@case("Load the model with transformers and save it again")
def a_tensor_in_two_shards(folder: Path) -> Iterator[Args]:
    base = in_shards(folder)
    listed = json.loads((base / INDEX).read_text())["weight_map"]
    last = max(listed.values())
    tensors = load_file(base / last) | {WRITER: load_file(base / listed[WRITER])[WRITER]}
    save_file(tensors, base / last, metadata={"format": "pt"})
    yield bake(base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder / "again")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "again")
    yield bake(folder / "again")


@case('write "metadata": {} into it')
def an_index_whose_metadata_are_a_list(folder: Path) -> Iterator[Args]:
    base = in_shards(folder)
    tiny.patch_json(base / INDEX, metadata=[1])
    yield bake(base)
    tiny.patch_json(base / INDEX, metadata={})
    yield bake(base)


@case('write "metadata": {} into it')
def an_index_without_metadata(folder: Path) -> Iterator[Args]:
    base = in_shards(folder)
    tiny.patch_json(base / INDEX, metadata=None)
    with pytest.raises(KeyError, match="metadata"):
        AutoModelForCausalLM.from_pretrained(base)
    yield bake(base)
    tiny.patch_json(base / INDEX, metadata={})
    yield bake(base)


@case("correct that entry")
def more_layers_than_any_model_has(folder: Path) -> Iterator[Args]:
    yield bake(base := base_in(folder, num_hidden_layers=10**9))
    tiny.patch_json(base / "config.json", num_hidden_layers=tiny.LAYERS)
    yield bake(base)


@case("remove that entry")
def a_part_for_text_that_the_family_lacks(folder: Path) -> Iterator[Args]:
    yield bake(base := base_in(folder, text_config={"hidden_size": 8}))
    tiny.patch_json(base / "config.json", text_config=None)
    yield bake(base)


@case("Give the configuration that belongs to these weights")
def a_configuration_of_other_weights(folder: Path) -> Iterator[Args]:
    yield fit(base := base_in(folder, intermediate_size=48))
    shutil.copyfile(tiny.single() / "config.json", base / "config.json")
    yield fit(base)


@case("only that can be edited")
def a_classifier(folder: Path) -> Iterator[Args]:
    model = AutoModelForSequenceClassification.from_pretrained(tiny.single())
    model.save_pretrained(folder / "classifier")
    yield bake(folder / "classifier")
    yield bake(tiny.single())


@case("give the whole model, as its save_pretrained writes it")
def a_head_that_is_missing(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    tensors = load_file(base / SINGLE)
    save_file({name: t for name, t in tensors.items() if name != "lm_head.weight"}, base / SINGLE, {"format": "pt"})
    yield bake(base)
    AutoModelForCausalLM.from_pretrained(tiny.single()).save_pretrained(base)
    yield bake(base)


@case("Start from its base model: several edits go into one artefact (sea-bake bake BASE FIRST SECOND -o ...)")
def a_base_that_is_edited(folder: Path) -> Iterator[Args]:
    ran = tiny.run("bake", tiny.single(), tiny.edit_file(), "-o", folder / "first", "--how", "insert")
    assert ran.code == 0, ran
    yield bake(folder / "first")
    yield ["bake", tiny.single(), tiny.edit_file(site="attn"), tiny.edit_file()]


@case("Use a base that transformers supports natively")
def code_that_transformers_has_not(folder: Path) -> Iterator[Args]:
    own = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    yield bake(base_in(folder, architectures=["OwnForCausalLM"], auto_map=own))
    yield bake(tiny.single())


@pytest.mark.parametrize("how", ["fold", "insert", "adapter"])
def test_code_that_transformers_has_itself_is_not_needed(tmp_path: Path, how: str) -> None:
    """As DeepSeek-V3 and Phi-3 stand on the Hub: their code is neither run nor named by what is baked of them."""
    own = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"}
    base = base_in(tmp_path, auto_map=own)
    (base / "modeling_own.py").write_text("raise SystemExit('it was run')\n")
    said = tiny.run(*fit(base, "--merge", "sum"), "-o", tmp_path / "edit")
    assert said.code == 0, said
    ran = tiny.run("bake", base, tmp_path / "edit", "-o", tmp_path / "out", "--how", how)
    assert ran.code == 0, ran
    assert "transformers has a LlamaForCausalLM of its own" in " ".join(ran.out.split()), ran
    out = tmp_path / "out"
    assert "modeling_own" not in "".join(p.read_text() for p in out.glob("*.json") if p.name != "sea_bake.json")
    assert not (out / "modeling_own.py").exists()
    plain = tmp_path / "plain"
    assert tiny.run("bake", tiny.single(), tmp_path / "edit", "-o", plain, "--how", how).code == 0
    files = [path.name for path in plain.glob("*.safetensors")]
    assert files
    assert all((plain / name).read_bytes() == (out / name).read_bytes() for name in files)  # the same as without it
    if how != "adapter":
        assert tiny.run("unbake", out, "-o", tmp_path / "back", "--base", base).code == 0
        assert not same_answers(out, tmp_path / "back")


# ------------------------------------------------------------------------------------------------------------ adapters


def lora(folder: Path, base: Path, **settings: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(target_modules=["q_proj", "o_proj"], r=2, init_lora_weights=False, **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return folder


def merged(adapter: Path, folder: Path) -> Path:
    from peft import PeftModel

    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def fitted(base: Path, folder: Path) -> Path:
    path = folder / f"edit-{base.name}.safetensors"
    ran = tiny.run(*fit(base, "--merge", "sum", "--site", "attn"), "-o", path)
    assert ran.code == 0, ran
    return path


@case("Merge it yourself (PeftModel.from_pretrained(base, adapter).merge_and_unload(), then save_pretrained)")
def an_adapter_of_another_kind(folder: Path) -> Iterator[Args]:
    adapter = lora(folder / "dora", base_in(folder), use_dora=True)
    yield fit(adapter)
    yield fit(merged(adapter, folder / "merged"))


@case("write it into base_model_name_or_path")
def an_adapter_that_names_no_base(folder: Path) -> Iterator[Args]:
    adapter = lora(folder / "lora", base := base_in(folder))
    tiny.patch_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    yield fit(adapter)
    tiny.patch_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    yield fit(adapter)


@case("merge or convert it first, and name the result in base_model_name_or_path")
def an_adapter_on_an_adapter(folder: Path) -> Iterator[Args]:
    first = lora(folder / "first", base_in(folder))
    second = Path(shutil.copytree(first, folder / "second"))
    tiny.patch_json(second / "adapter_config.json", base_model_name_or_path=str(first))
    yield fit(second)
    tiny.patch_json(second / "adapter_config.json", base_model_name_or_path=str(merged(first, folder / "merged")))
    yield fit(second)


@case("give each a folder of its own")
def a_model_and_an_adapter_in_one_folder(folder: Path) -> Iterator[Args]:
    both = lora(folder / "lora", base_in(folder))
    shutil.copyfile(tiny.single() / SINGLE, both / SINGLE)
    yield fit(both)
    (both / SINGLE).unlink()
    yield fit(both)


@case("Bake with --how fold, which merges both")
def an_adapter_of_a_merged_base(folder: Path) -> Iterator[Args]:
    adapter = lora(folder / "lora", base_in(folder))
    edit = fitted(adapter, folder)
    yield ["bake", adapter, edit, "--how", "adapter"]
    yield ["bake", adapter, edit, "--how", "fold"]


@case("or merge the base's adapter once (PeftModel.merge_and_unload(), then save_pretrained)")
def an_adapter_of_a_merged_base_merged_by_hand(folder: Path) -> Iterator[Args]:
    adapter = lora(folder / "lora", base_in(folder))
    yield ["bake", adapter, fitted(adapter, folder), "--how", "adapter"]
    whole = merged(adapter, folder / "merged")
    yield ["bake", whole, fitted(whole, folder), "--how", "adapter"]


@case("take quantization_config out of its config.json first")
def an_adapter_of_a_base_that_is_called_quantised(folder: Path) -> Iterator[Args]:
    base = base_in(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    edit = fitted(base, folder)
    yield ["bake", base, edit, "--how", "adapter"]
    tiny.patch_json(base / "config.json", quantization_config=None)
    yield ["bake", base, edit, "--how", "adapter"]


# --------------------------------------------------------------------------------------------------------- ways to bake


@case("Bake it with --how insert, which is exact for every edit")
def a_fold_that_is_not_exact(_: Path) -> Iterator[Args]:
    yield bake(tiny.single(), "--how", "fold")
    yield bake(tiny.single(), "--how", "insert")


@case("or fold the best stand-in: --how fold --approximate")
def a_fold_that_is_not_exact_stood_in_for(folder: Path) -> Iterator[Args]:
    edit = folder / "nonlinear"
    ran = tiny.run(*fit(tiny.single(), "--feature", "tanh", "--alpha", 2), "-o", edit)
    assert ran.code == 0, ran
    yield ["bake", tiny.single(), edit, "--how", "fold"]
    yield ["bake", tiny.single(), edit, "--how", "fold", "--approximate"]


@case("how='fold' (--how fold)")
def a_stand_in_that_is_inserted(_: Path) -> Iterator[Args]:
    yield bake(tiny.single(), "--approximate", "--how", "insert")
    yield bake(tiny.single(), "--approximate", "--how", "fold")


@case("drop --as")
def a_llama_as_a_llama(_: Path) -> Iterator[Args]:
    yield bake(tiny.single(), "--as", "llama")
    yield bake(tiny.single())


@case("or fix the strength with --alpha")
def a_budget_that_no_strength_reaches(_: Path) -> Iterator[Args]:
    words = ["fit", tiny.single(), "-d", tiny.demonstrations_file(), "--neutral", "prompt"]
    yield [*words, "--budget", 90]
    yield [*words, "--alpha", 2]


@case("Give a smaller --budget")
def a_smaller_budget(_: Path) -> Iterator[Args]:
    words = ["fit", tiny.single(), "-d", tiny.demonstrations_file(), "--neutral", "prompt"]
    yield [*words, "--budget", 90]
    yield [*words, "--budget", 1e-4]


# ------------------------------------------------------------------------------------------- prompts and demonstrations


@case("Take it out of the text")
def a_token_that_the_embedding_lacks(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|beyond|>"])
    tokenizer.save_pretrained(base)
    data = folder / "data.jsonl"
    yield fit(base, data=triples(data, lambda i, row: row | {"prompt": "<|beyond|>" * (i == 2) + row["prompt"]}))
    yield fit(base, data=triples(data, lambda i, row: row))


@case("shorten it, leave it out")
def a_text_that_is_too_long(folder: Path) -> Iterator[Args]:
    data = folder / "data.jsonl"
    yield fit(
        tiny.single(), data=triples(data, lambda i, row: row | {"positive": row["positive"] * (1 + 99 * (i == 1))})
    )
    yield fit(tiny.single(), data=triples(data, lambda i, row: row))


@case("lower --max-new-tokens")
def an_answer_that_may_grow_too_long(_: Path) -> Iterator[Args]:
    yield fit(tiny.single(), "--neutral", "generate", "--max-new-tokens", tiny.CONTEXT)
    yield fit(tiny.single(), "--neutral", "generate", "--max-new-tokens", 2)


@case("give answers that differ")
def answers_that_are_the_same(folder: Path) -> Iterator[Args]:
    data = folder / "data.jsonl"
    yield fit(tiny.single(), data=triples(data, lambda i, row: row | {"positive": row["negative"]}))
    yield fit(tiny.single(), data=triples(data, lambda i, row: row))


@case("choose a method that needs one prompt alone (--method mean-difference)")
def prompts_that_are_the_same(folder: Path) -> Iterator[Args]:
    data = triples(folder / "data.jsonl", lambda i, row: row | {"prompt": "Is it so?"})
    yield fit(tiny.single(), data=data)
    yield fit(tiny.single(), "--method", "mean-difference", data=data)


@case("or pass --no-centre")
def prompts_that_are_the_same_for_one_projection(folder: Path) -> Iterator[Args]:
    data = triples(folder / "data.jsonl", lambda i, row: row | {"prompt": "Is it so?"})
    yield fit(tiny.single(), "--parts", "positive", data=data)
    yield fit(tiny.single(), "--parts", "positive", "--no-centre", data=data)


def chatty(folder: Path, template: str) -> Path:
    base = base_in(folder)
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").write_text(template)
    return base


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHAT_TEMPLATE
)
NEEDS_ARGUMENT = "{% if not tone %}{{ raise_exception('a tone is needed') }}{% endif %}" + tiny.CHAT_TEMPLATE


@case("drop --system")
def a_template_without_a_system_prompt(folder: Path) -> Iterator[Args]:
    yield fit(base := chatty(folder, NO_SYSTEM), "--system", "Be brief.")
    yield fit(base)


@case("or pass --no-chat-template")
def a_template_without_a_system_prompt_left_out(folder: Path) -> Iterator[Args]:
    yield fit(base := chatty(folder, NO_SYSTEM), "--system", "Be brief.")
    yield fit(base, "--system", "Be brief.", "--no-chat-template")


@case("Give it what it wants (--template-args)")
def a_template_that_needs_an_argument(folder: Path) -> Iterator[Args]:
    yield fit(base := chatty(folder, NEEDS_ARGUMENT))
    yield fit(base, "--template-args", "tone=calm")


@case("save the one that you want as chat_template.jinja beside the tokenizer")
def templates_without_a_default(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    named = [{"name": name, "template": tiny.CHAT_TEMPLATE} for name in ("rag", "tool_use")]
    tiny.patch_json(base / "tokenizer_config.json", chat_template=named)
    yield fit(base)
    (base / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    yield fit(base)


@case("save the one that you want as chat_template.jinja beside the tokenizer")
def templates_in_files_without_a_default(folder: Path) -> Iterator[Args]:
    base = base_in(folder)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text(tiny.CHAT_TEMPLATE)
    yield fit(base)
    (base / "additional_chat_templates" / "rag.jinja").rename(base / "chat_template.jinja")
    yield fit(base)


@case("did you mean 'tone'?")
def an_argument_that_is_misspelt(folder: Path) -> Iterator[Args]:
    yield fit(base := chatty(folder, NEEDS_ARGUMENT), "--template-args", "tones=calm")
    yield fit(base, "--template-args", "tone=calm")


@case("drop it from --template-args")
def an_argument_that_is_not_read(folder: Path) -> Iterator[Args]:
    yield fit(base := chatty(folder, tiny.CHAT_TEMPLATE), "--template-args", "enable_thinking=false")
    yield fit(base)


@case("drop --date")
def a_date_that_is_not_shown(folder: Path) -> Iterator[Args]:
    yield fit(base := chatty(folder, tiny.CHAT_TEMPLATE), "--date", "2026-01-31")
    yield fit(base)


@case("try --dtype bfloat16 or float32")
def a_model_that_overflows_in_half_precision(folder: Path) -> Iterator[Args]:
    base = base_in(folder, dtype="float16")
    tensors = {name: t.half() for name, t in load_file(base / SINGLE).items()}
    for name in tensors:
        if "down_proj" in name or "up_proj" in name:
            tensors[name] = (tensors[name].float() * 4096).half()
    save_file(tensors, base / SINGLE, {"format": "pt"})
    yield fit(base)
    yield fit(base, "--dtype", "float32")
