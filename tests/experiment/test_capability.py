"""The stage ``capability`` with the real harness, on a local Ray, with a tiny model and an adapter of it."""

import json
import os
import sys

import pytest
import torch

from benchmarks.reference.harness_task import GOLD, QUESTIONS, write_task
from tests.processes import finish, start_python
from xgray.config import Experiment
from xgray.errors import InputError
from xgray.evaluate.capability import summary
from xgray.evaluate.harness import find_tasks, load_harness_model, load_task, run_task
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.models.load import load_causal_lm, load_tokenizer


def experiment(folder, model, variants, tasks, **section):
    return Experiment.model_validate(
        {
            "name": "tiny", "runs": str(folder / "runs"), "model": {"id": model}, "languages": ["en"],
            "prompts": {"limit": 1}, "variants": variants, "capability": {"tasks": tasks, **section},
        }
    )  # fmt: skip


def correct_answers(path):
    """Return for both metrics whether the likeliest answer is right, with a forward pass for each answer."""
    model, tokenizer = load_causal_lm(path, "float32"), load_tokenizer(path)
    correct = []
    for (question, choices), gold in zip(QUESTIONS, GOLD, strict=True):
        sums = []
        for choice in choices:
            prefix = len(tokenizer(question).input_ids)
            ids = torch.tensor([tokenizer(f"{question} {choice}").input_ids])
            with torch.inference_mode():
                log_probs = model(ids).logits[0, :-1].log_softmax(-1)
            sums.append(float(log_probs.gather(1, ids[0, 1:, None])[prefix - 1 :].sum()))
        normed = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        correct.append([float(max(range(3), key=scores.__getitem__) == gold) for scores in (sums, normed)])
    return [list(values) for values in zip(*correct, strict=True)]


@pytest.mark.slow
def test_models_are_measured_compared_and_resumed(tiny_model, tiny_adapter, tmp_path, local_ray):
    variants = [{"name": "tuned", "checkpoint": tiny_adapter[0]}]
    plan = make_plan(experiment(tmp_path, tiny_model, variants, [write_task(tmp_path)]))
    run_experiment(plan, ("capability",))
    base, tuned = (stage.folder for stage in plan.stages if stage.name == "capability")
    first = base.read_json("manifest.json")["counts"], base.read_bytes("metrics.json")
    base.remove("manifest.json")
    run_experiment(plan, ("capability",))
    assert first[0] == {"num_tasks": 1, "num_reused": 0, "num_questions": 5}
    again = base.read_json("manifest.json")["counts"]
    assert (again["num_reused"], again["num_questions"]) == (1, 5), "what is on disk is not measured again"
    assert base.read_bytes("metrics.json") == first[1]
    for folder, path in ((base, tiny_model), (tuned, tiny_adapter[1])):
        (row,) = (folder / "results").read_json("facts.json")["rows"]
        expected = correct_answers(path)
        assert [row["metrics"][name]["values"] for name in ("acc", "acc_norm")] == expected
        tasks = folder.read_json("metrics.json")["tasks"]
        assert (tasks["facts"]["version"], tasks["facts"]["num_fewshot"], tasks["facts"]["num_questions"]) == (3, 0, 5)
        accuracy = tasks["facts"]["metrics"]["acc"]
        assert accuracy["value"] == pytest.approx(sum(expected[0]) / 5)
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    compared = tuned.read_json("metrics.json")["comparison"]["facts"]["acc"]
    assert compared["paired"]
    assert compared["difference"] == pytest.approx(
        (sum(correct_answers(tiny_adapter[1])[0]) - sum(correct_answers(tiny_model)[0])) / 5
    )


def test_a_task_that_changed_is_another_experiment(tiny_model, tmp_path):
    task = write_task(tmp_path)
    before = make_plan(experiment(tmp_path, tiny_model, [], [task])).stage("capability", "base").fingerprint
    (tmp_path / "facts.jsonl").write_text(json.dumps({"question": "One and one is", "choices": ["two", "six"]}))
    assert make_plan(experiment(tmp_path, tiny_model, [], [task])).stage("capability", "base").fingerprint != before


@pytest.mark.slow
def test_names_of_tasks_are_checked_before_anything_runs(tmp_path):
    assert find_tasks(["hellaswag_multilingual"]).keys() > {"hellaswag_vi", "hellaswag_ru", "hellaswag_hi"}
    assert (
        find_tasks(Experiment(name="a", model={"id": "b"}, capability={}).capability.tasks)["m_mmlu_zh"] == "m_mmlu_zh"
    )
    with pytest.raises(InputError, match=r"no task 'helaswag_ru'\. Did you mean hellaswag_ru"):
        find_tasks(["helaswag_ru"])
    with pytest.raises(InputError, match="arc_vi is listed twice"):
        find_tasks(["arc_vi", "arc_multilingual"])
    (tmp_path / "group.yaml").write_text("group: mine\n")
    with pytest.raises(InputError, match=r"group\.yaml: no key 'task'"):
        find_tasks([str(tmp_path / "group.yaml")])


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'xgray\[capability\]'"):
        find_tasks(["arc_vi"])


@pytest.mark.slow
def test_questions_that_cannot_be_read_are_an_error_of_one_line(tmp_path):
    elsewhere = write_task(tmp_path, "elsewhere", dataset_path="nobody/no-such-questions", dataset_kwargs=None)
    wrong = write_task(tmp_path, "wrong", test_split="gone")
    code = (
        "import sys\nfrom xgray.errors import XgrayError\nfrom xgray.evaluate.harness import find_tasks, load_task\n"
        "for name, spec in find_tasks(sys.argv[1:]).items():\n"
        "    try:\n        load_task(name, spec)\n"
        "    except XgrayError as error:\n        print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    output, _ = finish(start_python("-c", code, elsewhere, wrong, environment=environment))
    first, second = output.splitlines()
    assert first.startswith(
        "StageError capability.tasks: elsewhere: its questions cannot be downloaded: ConnectionError"
    )
    assert second.startswith("InputError capability.tasks: wrong: its questions cannot be read: KeyError")


def rows_of_group(tiny_model, folder, aggregated):
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig, GroupConfig

    metrics = [AggMetricConfig(metric=name) for name in aggregated]
    group = Group.from_config(GroupConfig(group="both", aggregate_metric_list=metrics or None))
    for name in ("first", "second"):
        group.add(load_task(name, write_task(folder, name, fewshot_split="test")))
    model = load_harness_model(tiny_model, "float32", None, 4)
    return {row["task"]: row for row in run_task(model, group, 1, 3)["rows"]}


@pytest.mark.slow
def test_a_group_has_a_row_beside_those_of_its_tasks(tiny_model, tmp_path):
    rows = rows_of_group(tiny_model, tmp_path, ["acc"])
    assert {name: (row["group"], row["num_questions"]) for name, row in rows.items()} == {
        "first": ("both", 3), "second": ("both", 3), "both": (None, 6),
    }  # fmt: skip
    first, whole = rows["first"]["metrics"]["acc"], rows["both"]["metrics"]["acc"]
    assert (rows["first"]["num_fewshot"], len(first["values"])) == (1, 3)
    assert whole["value"] == pytest.approx(sum(first["values"]) / 3)
    assert whole["values"] is None, "a group's interval comes from its standard error"
    assert whole["stderr"] is not None


@pytest.mark.slow
def test_a_group_that_only_gathers_tasks_has_no_row(tiny_model, tmp_path):
    rows = rows_of_group(tiny_model, tmp_path, [])
    assert {name: (row["group"], row["num_questions"]) for name, row in rows.items()} == {
        "first": ("both", 3), "second": ("both", 3),
    }  # fmt: skip
    assert summary(list(rows.values()), 0.95)["second"]["metrics"]["acc"]["value"] is not None
