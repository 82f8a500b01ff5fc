"""The arithmetic of an estimate, against numbers worked out by hand."""

import pytest

from xgray.config import Experiment, Train
from xgray.estimate.lines import num_training_steps
from xgray.estimate.rates import Rates
from xgray.estimate.total import estimate
from xgray.estimate.work import ModelWork, TrainingWork, Work

RATES = {
    "start_seconds": 5,
    "train": {
        "seconds_per_step": 2, "start_seconds": 10, "seconds_per_pair": 0.5, "checkpoint_seconds": 3,
        "export_seconds": 7,
    },
    "generate": {"tokens_per_second": 100, "start_seconds": 30, "restart_seconds": 20, "prompt_tokens": 12},
    "score": {"texts_per_second": 50, "start_seconds": 4},
    "fluency": {"tokens_per_second": 200, "start_seconds": 6},
    "metrics": {"prompts_per_second": 10, "start_seconds": 1},
    "report": {"seconds": 8},
}  # fmt: skip


def experiment(**sections):
    values = {"name": "small", "model": {"id": "made"}, "generate": {"k": 5, "max_new_tokens": 20}}
    return Experiment.model_validate(values | sections)


def training(**changes):
    section = Train(eval_steps=5)
    return TrainingWork(section, num_pairs=48, num_validation=4, num_reference=52, num_steps=12, **changes)


def work(**changes):
    values = {"num_prompts": 40, "trainings": {"dpo": training()}, "models": {"base": ModelWork(), "dpo": ModelWork()}}
    return Work(**(values | changes))


def seconds(result):
    return {line.stage: line.seconds for line in result.lines}


def test_every_stage_by_hand():
    result = estimate(experiment(), work(), Rates.model_validate(RATES))
    # Validations after steps 5, 10 and 12, of 4 pairs each.
    train = 10 + (52 + 3 * 4) * 0.5 + 12 * 2 + 3 * 3 + 7
    tokens = 40 * 5 * 20
    by_hand = {
        "start": 5,
        "train/dpo": train,
        "generate: start": 30 + 20,
        "score: start": 4,
        "generate/base": tokens / 100,
        "generate/dpo": tokens / 100,
        "score/base": 200 / 50,
        "score/dpo": 200 / 50,
        "evaluate: fluency": 6 + 2 * tokens / 200,
        "evaluate: metrics": 1 + 80 / 10,
        "report": 8,
    }
    assert seconds(result) == pytest.approx(by_hand)
    assert result.seconds == pytest.approx(sum(by_hand.values())), "on shared cores nothing overlaps"
    assert (result.gpu_hours, result.money) == (0.0, None)
    sampled = next(line for line in result.lines if line.stage == "generate/base")
    assert (sampled.num_completions, sampled.prompt_tokens, sampled.new_tokens) == (200, 480, 4000)
    assert any("upper bound" in note for note in result.notes)


def test_one_request_per_second_takes_ten_days():
    with_service = experiment(score={"scorer": "perspective"}, generate={"k": 25})
    rates = Rates.model_validate(RATES | {"price_per_1000_requests": 2})
    result = estimate(with_service, work(num_prompts=17_000, trainings={}), rates)
    assert sum(line.num_requests for line in result.lines) == 850_000
    assert seconds(result)["score/base"] + seconds(result)["score/dpo"] == 850_000
    assert result.saved_seconds == 2 * 17_000 * 25 * 20 / 100, "the engine works while requests wait for the rate limit"
    assert result.seconds > 9.8 * 86_400
    assert result.money == pytest.approx(1700)


def test_gpus_share_the_work_and_cost_while_they_are_held():
    rates = Rates.model_validate(
        RATES | {"num_gpus": 4, "price_per_gpu_hour": 3, "price_per_node_hour": 1, "num_nodes": 2}
    )
    result = estimate(experiment(generate={"k": 5, "execution": {"tensor_parallel": 2}}), work(), rates)
    assert seconds(result)["generate/base"] == 4000 / 100 / 2, "two engines of two GPUs"
    assert seconds(result)["evaluate: fluency"] == 6 + 8000 / 200 / 4
    # Scoring takes 8 s of a CPU while the engines work for 40.
    assert result.saved_seconds == 8
    gpu_seconds = {line.stage: line.gpu_hours * 3600 for line in result.lines if line.gpu_hours}
    train = seconds(result)["train/dpo"]
    assert gpu_seconds == pytest.approx(
        {
            "train/dpo": train, "generate: start": 4 * 50, "generate/base": 80, "generate/dpo": 80,
            "evaluate: fluency": 4 * 16,
        }
    )  # fmt: skip
    assert result.money == pytest.approx(sum(gpu_seconds.values()) / 3600 * 3 + result.seconds / 3600 * 2)


@pytest.mark.parametrize(
    ("machines", "num_workers", "expected"),
    [
        ({}, 1, 4),  # they share one machine's cores
        ({"num_nodes": 2}, 1, 2),
        ({"num_nodes": 3}, 1, 2),
        ({"num_nodes": 2}, 2, 4),
        ({"num_gpus": 1}, 1, 4),
        ({"num_gpus": 4}, 1, 1),
        ({"num_gpus": 4}, 2, 2),
    ],
)
def test_trainings_on_different_gpus_or_nodes_run_at_the_same_time(machines, num_workers, expected):
    section = Train(eval_steps=5, execution={"num_workers": num_workers})
    trainings = {
        name: TrainingWork(section, num_pairs=48, num_validation=4, num_reference=0, num_steps=12) for name in "abcd"
    }
    result = estimate(experiment(), work(trainings=trainings, models={}), Rates.model_validate(RATES | machines))
    each = 10 + 3 * 4 * 0.5 + 12 * 2 + 3 * 3 + 7
    assert [seconds(result)[f"train/{name}"] for name in "abcd"] == [each] * 4
    assert result.saved_seconds == pytest.approx((4 - expected) * each)


@pytest.mark.parametrize(("num_gpus", "engines", "scorers"), [(1, 1, 0), (2, 1, 1), (8, 7, 1)])
def test_gpus_are_shared_as_placement_shares_them(num_gpus, engines, scorers):
    rates = Rates.model_validate(RATES | {"num_gpus": num_gpus})
    classifier = {"scorer": "classifier", "classifier": {"model": {"id": "made"}}}
    result = estimate(experiment(score=classifier), work(), rates)
    assert seconds(result)["generate/base"] == pytest.approx(4000 / 100 / engines)
    gpu_seconds = {line.stage: line.gpu_hours * 3600 for line in result.lines}
    assert gpu_seconds["generate/base"] == pytest.approx(40)
    assert gpu_seconds["score/base"] == pytest.approx(200 / 50)
    assert (result.saved_seconds > 0) == (scorers > 0)  # with a single GPU they take turns
    scored = work(models={"base": ModelWork(40, 40), "dpo": ModelWork(0, 40)})
    assert seconds(estimate(experiment(score=classifier), scored, rates))["generate/dpo"] == 4000 / 100 / num_gpus


@pytest.mark.parametrize(
    ("machine", "scorers", "overlaps"),
    [
        ({}, 1, False),
        ({"num_cores": 2}, 1, False),
        ({"num_cores": 192, "num_gpus": 8}, 25, True),
        ({"num_cores": 8 * 24, "num_nodes": 8}, 21, True),  # one node samples
        ({"num_cores": 192}, 1, False),
    ],
)
def test_scorers_are_as_many_as_placement_starts(machine, scorers, overlaps):
    small_blocks = {"k": 5, "max_new_tokens": 20, "execution": {"engine": "transformers", "batch_size": 2}}
    rates = Rates.model_validate(RATES | machine)
    result = estimate(experiment(generate=small_blocks), work(), rates)
    assert seconds(result)["score/base"] == pytest.approx(200 / 50 / scorers)
    assert (result.saved_seconds > 0) == overlaps
    few = {"k": 5, "max_new_tokens": 20, "execution": {"engine": "transformers", "batch_size": 20}}
    blocks = estimate(experiment(generate=few), work(), rates)
    assert seconds(blocks)["score/base"] == pytest.approx(200 / 50 / min(scorers, 4)), "two blocks of each model"
    fixed = experiment(generate=small_blocks, score={"execution": {"num_actors": 3}})
    assert seconds(estimate(fixed, work(), rates))["score/base"] == pytest.approx(200 / 50 / 3)


def test_finished_work_is_subtracted():
    rates = Rates.model_validate(RATES)
    done = {
        "trainings": {"dpo": training(num_steps_done=10)},
        "models": {
            "base": ModelWork(num_generated=40, num_scored=40),
            "dpo": ModelWork(num_generated=30, num_scored=10),
        },
        "num_perplexities": 150,
    }
    result = estimate(experiment(), work(**done), rates)
    assert seconds(result) == pytest.approx(
        {
            "start": 5,
            "train/dpo": 10 + (52 + 1 * 4) * 0.5 + 2 * 2 + 3 + 7,
            "generate: start": 30,
            "score: start": 4,
            "generate/base": 0,
            "generate/dpo": 10 * 5 * 20 / 100,
            "score/base": 0,
            "score/dpo": 30 * 5 / 50,
            "evaluate: fluency": 6 + 250 * 20 / 200,
            "evaluate: metrics": 9,
            "report": 8,
        }
    )
    finished = {
        "trainings": {"dpo": training(num_steps_done=12)},
        "models": {"base": ModelWork(40, 40), "dpo": ModelWork(40, 40)},
        "is_evaluated": True,
        "is_reported": True,
    }
    assert estimate(experiment(), work(**finished), Rates()).seconds == 0, "no rate is needed for what is done"


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("train", "train.seconds_per_step"),
        ("generate", "generate.tokens_per_second"),
        ("score", "score.texts_per_second"),
        ("fluency", "fluency.tokens_per_second"),
        ("metrics", "metrics.prompts_per_second"),
        ("report", "report.seconds"),
    ],
)
def test_a_stage_without_a_rate_is_counted_and_the_rate_is_named(stage, key):
    rates = Rates.model_validate({name: value for name, value in RATES.items() if name != stage})
    result, whole = estimate(experiment(), work(), rates), estimate(experiment(), work(), Rates.model_validate(RATES))
    missing = {line.stage: line for line in result.lines if line.missing}
    assert {line.missing for line in missing.values()} == {key}
    complete = {line.stage: line for line in whole.lines}
    for name, line in missing.items():
        assert (line.num_left, line.new_tokens, line.seconds) == (
            complete[name].num_left,
            complete[name].new_tokens,
            None,
        )
    assert result.seconds < whole.seconds
    assert any(key in note for note in result.notes)
    assert any(f"the total is without {', '.join(missing)}" in note for note in result.notes)


@pytest.mark.parametrize(
    ("num_pairs", "fields", "steps"),
    [
        (302, {"batch_size": 4, "epochs": 5}, 375),
        (36, {"batch_size": 4, "gradient_accumulation": 2, "epochs": 1}, 5),
        (35, {"batch_size": 4, "epochs": 0.5}, 4),
        (3, {"batch_size": 1, "gradient_accumulation": 8, "epochs": 2.5}, 3),
        (302, {"max_steps": 7}, 7),
    ],
)
def test_training_steps_agree_with_the_trainer(num_pairs, fields, steps, tmp_path):
    import torch
    from transformers import Trainer

    from xgray.train.trainer import training_arguments

    section = Train.model_validate(fields)
    assert num_training_steps(section, num_pairs) == steps
    arguments = training_arguments(section, 0, tmp_path, cuda=False, num_validation=0)
    data = [{"x": torch.zeros(1)}] * num_pairs
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=data)
    assert trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1] == steps


def test_each_further_scorer_has_lines_of_its_own():
    """Perspective takes 40 prompts x 5 texts at 4 a second; of a classifier no rate is known."""
    sections = [
        {},
        {"scorer": "perspective", "execution": {"requests_per_second": 4}},
        {"scorer": "classifier", "classifier": {"model": {"id": "made/toxic"}}},
    ]
    with_others = experiment(score=sections)
    others = {
        "perspective": {"base": ModelWork(40, 0, 20), "dpo": ModelWork(40, 40)},
        "classifier-toxic": {"base": ModelWork(40, 30), "dpo": ModelWork()},
    }
    alone, result = (
        estimate(made, left, Rates(**RATES))
        for made, left in ((experiment(), work()), (with_others, work(other_scorers=others)))
    )
    lines = {line.stage: line for line in result.lines if "@" in line.stage}
    assert [(line.num_left, line.num_completions, line.num_requests, line.seconds) for line in lines.values()] == [
        (40, 180, 180, 45.0),
        (0, 0, 0, 0.0),
        (10, 50, 0, None),
        (40, 200, 0, None),
    ]
    assert list(lines)[:2] == ["score@perspective/base", "score@perspective/dpo"]
    assert result.seconds == pytest.approx(alone.seconds + 45)
    assert any("score@classifier-toxic/dpo" in note for note in result.notes)
