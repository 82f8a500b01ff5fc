"""What is measured with: the experiment itself, but for how much there is to do."""

from dataclasses import replace

import pytest

from xgray.config import Experiment
from xgray.estimate.measure import small
from xgray.estimate.work import ModelWork, TrainingWork, Work


@pytest.fixture
def experiment(tmp_path):
    return Experiment.model_validate(
        {
            "name": "mine", "runs": str(tmp_path / "runs"), "model": {"id": "made"},
            "train": {"method": "lora", "batch_size": 4, "gradient_accumulation": 2, "epochs": 20, "limit": 24_576},
            "variants": [{"name": "first"}, {"name": "second", "train": {"batch_size": 8}}],
            "generate": {"k": 25, "execution": {"batch_size": 32}},
            "score": {"scorer": "perspective", "execution": {"store": str(tmp_path / "mine")}},
        }
    )  # fmt: skip


def work_of(experiment, *done):
    trainings = {
        variant.name: TrainingWork(
            experiment.train_section(variant), 100, 5, 105, 50, 50 if variant.name in done else 0
        )
        for variant in experiment.variants
    }
    return Work(17_000, trainings, {name: ModelWork() for name in ("base", "first", "second")})


def test_one_batch_of_prompts_and_a_few_steps(experiment):
    measured = small(experiment, work_of(experiment, "first"), "elsewhere")
    assert measured.prompts.limit == 2
    assert measured.generate.execution.batch_size == 34, "all of them in one call"
    assert measured.generate.k == 25
    assert [variant.name for variant in measured.variants] == ["second"], "the first variant that is not trained"
    section = measured.train_section(measured.variants[0])
    assert (section.batch_size, section.method, section.max_steps) == (8, "lora", 6)
    assert section.limit == 6 * 8 * 2 + 16
    assert (measured.runs, measured.score.execution.store) == ("elsewhere", None), "no score of the run's store is used"
    assert measured.score.scorer == "embedding", "a service gets no request"
    assert measured.evaluate == experiment.evaluate


def test_no_more_than_the_experiment_has(experiment):
    few = replace(work_of(experiment), num_prompts=17)
    assert small(experiment, few, "elsewhere").prompts.limit == 1


def test_a_finished_training_is_measured_as_a_checkpoint(experiment, tmp_path):
    (tmp_path / "runs" / "mine" / "train" / "first" / "merged").mkdir(parents=True)
    measured = small(experiment, work_of(experiment, "first", "second"), "elsewhere")
    assert [(variant.name, variant.checkpoint) for variant in measured.variants] == [
        ("first", str(tmp_path / "runs" / "mine" / "train" / "first" / "merged"))
    ]


def test_finished_weights_behind_a_uri_are_replaced_by_a_short_training(experiment):
    remote = experiment.model_copy(update={"runs": "s3://bucket/runs"})
    measured = small(remote, work_of(experiment, "first", "second"), "elsewhere")
    assert [(variant.name, variant.checkpoint) for variant in measured.variants] == [("first", None)]
    assert measured.train.max_steps == 6
