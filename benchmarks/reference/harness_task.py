"""A task for lm-evaluation-harness, whose questions lie beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    ("The colour of a ripe banana is", ["yellow", "dark blue", "black"]),
    ("A dog is a kind of", ["small stone", "animal", "river"]),
    ("The sun rises in the", ["kitchen", "west", "east"]),
    ("Water freezes into", ["ice", "sand", "a golden ring"]),
    ("Bread is made of", ["iron", "flour", "glass"]),
]
"""Questions with their choices."""
GOLD = [0, 1, 2, 0, 1]
"""The index of the right choice of each question."""


def write_task(folder: Path, name: str = "facts", **fields: Any) -> str:
    """Write a multiple-choice task of five questions, and return its file.

    Args:
        fields: of the task file, over the usual ones.
    """
    lines = [
        json.dumps({"question": question, "choices": choices, "gold": gold})
        for (question, choices), gold in zip(QUESTIONS, GOLD, strict=True)
    ]
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n")
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    task = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "facts.jsonl"}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "question", "doc_to_choice": "choices",
        "doc_to_target": "gold", "metric_list": metrics, "metadata": {"version": 3},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task | fields))
    return str(folder / f"{name}.yaml")
