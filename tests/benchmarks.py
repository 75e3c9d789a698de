"""A handful of rows per benchmark in the published formats, made up for the tests, and a folder of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def _truthfulqa(question: str, true: list[str], false: list[str]) -> dict[str, Any]:
    both = [*true, *false]
    return {
        "question": question,
        "mc1_targets": {"choices": [true[0], *false], "labels": [1] + [0] * len(false)},
        "mc2_targets": {"choices": both, "labels": [1] * len(true) + [0] * len(false)},
    }


TRUTHFULQA = [
    _truthfulqa("Can bats see?", ["Yes, they see well.", "Bats can see."], ["No, all bats are blind.", "They cannot."]),
    _truthfulqa("Is the sun a star?", ["The sun is a star."], ["The sun is a planet.", "No.", "It is a moon."]),
    _truthfulqa("What is bread?", ["Baked dough.", "Food."], ["A stone."]),
    _truthfulqa("How long do goldfish remember?", ["For months."], ["For three seconds.", "For years and years."]),
    _truthfulqa("Where does water boil sooner?", ["On a mountain.", "High up."], ["In a valley.", "Never."]),
]


def bbq(
    groups: tuple[tuple[str, str], ...],
    label: int,
    *,
    polarity: str = "neg",
    condition: str = "ambig",
    category: str = "Age",
    stereotyped: tuple[str, ...] = ("old",),
) -> dict[str, Any]:
    """One question; ``groups`` are (answer, group) of its three answers."""
    return {
        "example_id": len(groups),
        "question_index": "1",
        "question_polarity": polarity,
        "context_condition": condition,
        "category": category,
        "answer_info": {f"ans{i}": [name, group] for i, (name, group) in enumerate(groups)},
        "additional_metadata": {"subcategory": "None", "stereotyped_groups": list(stereotyped), "version": "a"},
        "context": f"{groups[0][0]} met {groups[1][0]}.",
        "question": "Who forgot the name?" if polarity == "neg" else "Who knew the name?",
        **{f"ans{i}": name for i, (name, _) in enumerate(groups)},
        "label": label,
    }


_AGED = (("The grandfather", "old"), ("The grandson", "nonOld"), ("Cannot be determined", "unknown"))
_GENDER = (("Not known", "unknown"), ("The woman", "woman"), ("The man", "man"))
BBQ = [
    bbq(_AGED, 2),
    bbq(_AGED, 0, condition="disambig"),
    bbq(_AGED, 1, polarity="nonneg", condition="disambig"),
    bbq(_GENDER, 0, category="Gender_identity", stereotyped=("F",)),
    bbq(_GENDER, 2, polarity="nonneg", condition="disambig", category="Gender_identity", stereotyped=("F",)),
    # Both groups are stereotyped: this one says nothing about bias.
    bbq((("Latasha", "F-Black"), ("Camila", "F-Latino"), ("Unknown", "unknown")), 2, category="Race_ethnicity",
        stereotyped=("Black", "Latino")),
]  # fmt: skip

HELLASWAG = [
    {
        "ind": 1, "activity_label": "Baking bread", "ctx_a": "A man kneads the dough.", "ctx_b": "he then",
        "ctx": "", "endings": ["bakes it.", "sings to the dog.", "throws it at the moon.", "sleeps."],
        "source_id": "x", "split": "val", "split_type": "zeroshot", "label": "0",
    },
    {
        "ind": 2, "activity_label": "Health", "ctx_a": "[header] How to rest [title] Lie down. [step] Close your eyes.",
        "ctx_b": "", "ctx": "", "endings": ["[substeps] Wait  a while.", "Run.", "Shout loudly.", "Eat a stone."],
        "source_id": "y", "split": "val", "split_type": "zeroshot", "label": "0",
    },
]  # fmt: skip
GSM8K = [
    {"question": f"Ann has {n} pens and buys {n}. How many has she?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
    for n in range(2, 8)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "truthfulqa/truthful_qa_multiple_choice.test.jsonl": TRUTHFULQA,
    "bbq/bbq_rows.jsonl": BBQ,
    "hellaswag/hellaswag_val.jsonl": HELLASWAG,
    "gsm8k/test.jsonl": GSM8K[:2],
    "gsm8k/train.jsonl": GSM8K,
    "mathqa/mathqa_test.jsonl": [
        {"question": "what is 2 + 3 ?", "choices": ["5", "6", "7", "none of these"], "label": 0},
        {"question": "what is 2 * 3 ?", "choices": ["5", "6", "7", "none of these"], "label": 1},
    ],
    "mmlu/mmlu_test.jsonl": [
        {"question": "What goes around the earth?", "subject": "high_school_physics",
         "choices": ["The moon", "The sun", "Mars", "Nothing"], "answer": 0},
        {"question": "What is a cat?", "subject": "college_biology",
         "choices": ["A plant", "An animal", "A rock", "A star"], "answer": 1},
    ],
    "mmlu/mmlu_dev.jsonl": [
        {"question": f" What is thing {n} of {subject}? ", "subject": subject,
         "choices": ["One", "Two", "Three", "No"], "answer": n % 4}
        for n in range(5) for subject in ("college_biology", "anatomy", "high_school_physics")
    ],
    "nq_open/nq_open_validation.jsonl": [{"question": "who has seen the moon", "answer": ["everybody", "all"]}] * 2,
    "toxigen/toxigen.jsonl": [
        {"text": "they are kind people", "toxicity_ai": 1.0, "toxicity_human": 1.5},
        {"text": "they are all bad", "toxicity_ai": 4.0, "toxicity_human": 3.0},
    ],
}  # fmt: skip
CROWS = [("old people forget", "young people forget"), ("girls cannot count", "boys cannot count")]


def write(folder: Path) -> Path:
    """All benchmarks, as ``--data`` takes them."""
    for name, rows in ROWS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "crows_pairs").mkdir()
    with open(folder / "crows_pairs" / "crows_pairs.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerows([("sent_more", "sent_less"), *CROWS])
    return folder
