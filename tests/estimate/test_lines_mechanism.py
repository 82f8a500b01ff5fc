"""What the stages that look inside the network take, against numbers worked out by hand."""

import pytest

from xgray.config import Experiment
from xgray.estimate.rates import Rates
from xgray.estimate.total import estimate
from xgray.estimate.work import GreedyWork, InterventionWork, ModelWork, ReadingWork, UnratedWork, Work

RATES = {
    "generate": {"tokens_per_second": 100, "start_seconds": 30, "prompt_tokens": 12, "new_tokens": 15, "source": "us"},
    "score": {"texts_per_second": 50},
    "fluency": {"tokens_per_second": 200, "start_seconds": 6, "source": "also us"},
    "metrics": {"prompts_per_second": 10, "start_seconds": 1},
}


def experiment(**sections):
    values = {
        "name": "small", "model": {"id": "made"}, "intervene": {"neurons": [[0, 1]], "offsets": [-1, -2]},
        "generate": {"k": 5, "max_new_tokens": 20, "execution": {"engine": "transformers"}},
    }  # fmt: skip
    return Experiment.model_validate(values | sections)


def estimated(*stages, of=None, **rates):
    """The estimate of an experiment in which everything else is done."""
    done = {"base": ModelWork(40, 40)}
    work = Work(40, {}, done, is_evaluated=True, is_reported=True, prompt_characters=48.0, inside=list(stages))
    return estimate(of or experiment(), work, Rates.model_validate(RATES | rates))


def lines(estimated):
    return {line.stage: line for line in estimated.lines}


def test_texts_are_read_at_the_rate_of_fluency():
    # 9,600 characters of which four are a token, as in prompts of 48 characters and 12 tokens.
    line = lines(estimated(ReadingWork("probe", 100, 9_600)))["probe"]
    assert (line.unit, line.num_left, line.prompt_tokens) == ("texts", 100, 2_400)
    assert line.seconds == pytest.approx(6 + 2_400 / 200)
    assert "an upper bound: the rate of fluency (also us)" in line.source
    # Another measuring model's pace says nothing of the base model's.
    other = experiment(evaluate={"fluency": {"model": {"id": "other"}}})
    assert lines(estimated(ReadingWork("probe", 100, 9_600), of=other))["probe"].seconds is None
    assert lines(estimated(ReadingWork("probe", 100, 9_600, is_done=True)))["probe"].seconds == 0


def test_greedy_tokens_are_estimated_for_transformers_only():
    stage = GreedyWork("activations/base", 40, 10, num_done=15)
    line = lines(estimated(stage))["activations/base"]
    assert (line.num_done, line.num_left, line.new_tokens, line.prompt_tokens) == (15, 25, 250, 300)
    assert line.seconds == pytest.approx(30 + 250 / 100)
    by_vllm = experiment(generate={"execution": {"engine": "vllm"}})
    assert lines(estimated(stage, of=by_vllm))["activations/base"].seconds is None


def test_an_intervention_is_sampled_scored_and_evaluated():
    settings = {"base": ModelWork(40, 40), "offset-1": ModelWork(10, 0), "offset-2": ModelWork()}
    settings_experiment = experiment(
        intervene={
            "neurons": [[0, 1]],
            "offsets": [-1, -2],
            "generate": {"k": 2, "max_new_tokens": 8, "temperature": 1},
        }
    )
    by_stage = lines(estimated(InterventionWork(40, settings), of=settings_experiment))
    # 30 prompts of one setting and 40 of the other, two completions of 8 tokens each.
    generate, score = by_stage["intervene: generate"], by_stage["intervene: score"]
    assert (generate.num_done, generate.num_left, generate.num_completions, generate.new_tokens) == (50, 70, 140, 1120)
    assert generate.seconds == pytest.approx(11.2)
    assert (score.num_left, score.num_completions, score.seconds) == (80, 160, pytest.approx(3.2))
    assert by_stage["intervene: start"].seconds == 30
    assert by_stage["intervene: fluency"].seconds == pytest.approx(6 + 40 * 3 * 2 * 8 / 200)
    assert by_stage["intervene: metrics"].seconds == pytest.approx(1 + 120 / 10)
    every = InterventionWork(40, dict.fromkeys(settings, ModelWork(40, 40)), is_done=True)
    assert estimated(every, of=settings_experiment).seconds == 0
    unrated = lines(estimated(InterventionWork(40, settings), of=settings_experiment, generate=None))
    assert unrated["intervene: generate"].missing == "generate.tokens_per_second"
    assert (unrated["intervene: generate"].seconds, unrated["intervene: generate"].new_tokens) == (None, 1120)


def test_on_gpus_an_intervention_is_scored_while_it_is_sampled():
    stage = InterventionWork(40, {"base": ModelWork(), "offset-1": ModelWork()})
    result = estimated(stage, num_gpus=2)
    by_stage = lines(result)
    assert result.saved_seconds == pytest.approx(80 / 50)
    assert by_stage["intervene: generate"].seconds == pytest.approx(80 * 20 / 100 / 2)
    assert by_stage["intervene: start"].gpu_hours == pytest.approx(2 * 30 / 3600)


def test_stages_without_a_rate_are_named_in_the_notes():
    result = estimated(
        UnratedWork("transfer", "correlations", 1, is_done=True), UnratedWork("capability/base", "entries", 11)
    )
    assert (lines(result)["capability/base"].num_left, lines(result)["capability/base"].seconds) == (11, None)
    assert [note for note in result.notes if "without" in note] == [
        "the total is without capability/base: no rate is known, so they are not estimated"
    ]
    assert result.seconds == 0
