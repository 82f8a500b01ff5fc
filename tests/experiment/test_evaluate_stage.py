"""The stage evaluate without a measuring model, on rows that were written before."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.evaluate.test_consistency import COMPLETIONS
from xgray.config import Experiment
from xgray.config.stages import stage_named
from xgray.errors import ConflictError
from xgray.experiment.checks import check_other_stages
from xgray.experiment.plan import Plan, PlannedStage
from xgray.experiment.stages import evaluate
from xgray.rows import Completions, Scores, from_table, schema, to_table
from xgray.runs.manifest import StageFolder, StageResult
from xgray.storage.folder import Folder


@pytest.fixture
def plan(tmp_path):
    """A run with scores of two prompts in German; one completion of four is in English, one has no score."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "tokenizer")
    settings = {"fluency": {"kind": "none"}, "diversity_tokenizer": str(tmp_path / "tokenizer"), "resamples": 100}
    experiment = Experiment(name="made", model={"id": "made/model"}, languages=["de"], variants=[], evaluate=settings)
    plan = Plan(experiment, Folder(str(tmp_path / "run")), ["base"], [])
    for name, model in (("generate", "base"), ("score", "base"), ("evaluate", None)):
        folder = plan.run / name / model if model else plan.run / name
        plan.add(PlannedStage(stage_named(name), StageFolder(folder, name, model), {"version": 1, "inputs": {}}))
    texts = [[COMPLETIONS["de"], COMPLETIONS["en"]], [COMPLETIONS["de"], COMPLETIONS["de"]]]
    values = [[0.4, 0.1], [0.2, None]]
    completions = [
        Completions(f"de/{at}", "de", "base", "du", given, [9, 9], ["length"] * 2) for at, given in enumerate(texts)
    ]
    scores = [
        Scores(f"de/{at}", "de", "base", [{"toxicity": value} for value in given], [None, None], "made", "1")
        for at, given in enumerate(values)
    ]
    plan.stage("generate", "base").rows.write_parquet("0.parquet", to_table(completions, Completions))
    plan.stage("score", "base").rows.write_parquet("0.parquet", to_table(scores, Scores))
    for name in ("generate", "score"):
        plan.stage(name, "base").finish(StageResult({"num_prompts": 2}))
    return plan


def test_metrics_hold_language_consistency_and_bounds(plan):
    planned, labels = plan.stage("evaluate"), set()
    assert planned.begin()
    planned.finish(evaluate.run(plan, planned, lambda label, *counts: labels.add(label)))
    metrics = planned.folder.read_json("metrics.json")
    german = metrics["consistency"]["models"]["base"]["languages"]["de"]
    assert german["consistent"]["value"] == 0.75
    assert german["others"] == {"en": 1}
    assert german["emt"]["value"] == pytest.approx((0.4 + 0.2) / 2)
    bounds = metrics["models"]["base"]["average"]["bounds"]
    assert bounds["emt"] == pytest.approx({"low": (0.4 + 0.2) / 2, "high": (0.4 + 1) / 2})
    assert "evaluate: languages" in labels


def test_a_run_that_an_earlier_version_evaluated_is_passed_over_and_can_be_measured(plan):
    planned = plan.stage("evaluate")
    planned.begin()
    planned.finish(evaluate.run(plan, planned, lambda *progress: None))
    earlier = planned.folder.read_json("metrics.json")
    expected = earlier.pop("consistency")
    planned.folder.write_json("metrics.json", earlier)
    assert not planned.begin()
    planned.folder.remove("manifest.json")  # what the report says
    assert planned.begin()
    planned.finish(evaluate.run(plan, planned, lambda *progress: None))
    assert planned.folder.read_json("metrics.json")["consistency"] == expected


@pytest.mark.parametrize(
    ("payload", "is_earlier"),
    [
        ({"version": 0, "inputs": {"base": "the score's"}}, True),
        ({"version": 0, "inputs": {"base": "other"}}, False),
        ({"version": 0, "inputs": {"base": "the score's"}, "section": {"threshold": 0.4}}, False),
        ({"version": 2, "inputs": {"base": "the score's"}}, False),
    ],
)
def test_results_of_an_earlier_version_of_the_same_configuration_can_be_reported(tmp_path, payload, is_earlier):
    plan = Plan(Experiment(name="made", model={"id": "made/model"}), Folder(str(tmp_path)), ["base"], [])
    place = StageFolder(plan.run / "evaluate", "evaluate", None)
    plan.add(PlannedStage(stage_named("evaluate"), place, {"version": 1, "inputs": {"base": "the score's"}}))
    assert not plan.is_of_earlier_version(plan.stage("evaluate"))
    place.finish(payload, StageResult())
    report = PlannedStage(
        stage_named("report"), StageFolder(plan.run / "report", "report", None), {"version": 1, "inputs": {}}
    )
    assert plan.is_of_earlier_version(plan.stage("evaluate")) is is_earlier
    if is_earlier:
        check_other_stages(plan, [report], force=False)
    else:
        with pytest.raises(ConflictError):
            check_other_stages(plan, [report], force=False)


def test_a_sweep_is_part_of_the_payload_and_its_points_of_the_metrics(plan):
    """The trainings of the two seeds have the completions and scores of the base model."""
    before = evaluate.payload(plan, None)
    assert "sweep" not in before
    swept = Experiment.model_validate(
        plan.experiment.model_dump(mode="json") | {"variants": [{"name": "dpo"}], "sweep": {"seed": [1, 2]}}
    )
    names = [variant.name for variant in swept.variants]
    with_sweep = Plan(swept, plan.run, ["base", *names], [])
    for stage in plan.stages:
        with_sweep.add(stage)
    for stage, table in (("generate", Completions), ("score", Scores)):
        rows = from_table(plan.stage(stage, "base").rows.read_parquet(schema(table)), table)
        for name in names:
            place = StageFolder(plan.run / stage / name, stage, name)
            with_sweep.add(PlannedStage(stage_named(stage), place, {"version": 1, "inputs": {}}))
            place.rows.write_parquet("0.parquet", to_table([replace(row, model=name) for row in rows], table))
            with_sweep.stage(stage, name).finish(StageResult({"num_prompts": 2}))
    assert evaluate.payload(with_sweep, None)["sweep"] == {
        name: {"variant": "dpo", "values": {"seed": seed}} for seed, name in enumerate(names, start=1)
    }
    planned = with_sweep.stage("evaluate")
    planned.begin()
    planned.finish(evaluate.run(with_sweep, planned, lambda *progress: None))
    metrics = planned.folder.read_json("metrics.json")
    (point,) = metrics["sweep"]["points"]
    assert (point["name"], point["variants"], point["seeds"]) == ("dpo", names, [1, 2])
    assert point["average"]["emt"]["value"] == metrics["models"]["base"]["average"]["emt"]["value"]
    assert point["comparison"]["languages"]["de"]["emt"]["difference"] == 0
    assert metrics["consistency"]["points"]["dpo"]["languages"]["de"]["num_texts"] == 2 * 4
