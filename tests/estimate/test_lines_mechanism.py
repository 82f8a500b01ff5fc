"""What the stages that look inside the network take, against numbers worked out by hand."""

import pytest

from xgray.config import Experiment
from xgray.errors import InputError
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


def told(*stages, asked=None, **rates):
    """The estimate of an experiment in which everything else is done."""
    done = {"base": ModelWork(40, 40)}
    work = Work(40, {}, done, is_evaluated=True, is_reported=True, prompt_characters=48.0, inside=list(stages))
    return estimate(asked or experiment(), work, Rates.model_validate(RATES | rates))


def lines(estimated):
    return {line.stage: line for line in estimated.lines}


def test_texts_that_are_read_go_at_fluencys_pace():
    # 9,600 characters of which four are a token, as in prompts of 48 characters and 12 tokens.
    line = lines(told(ReadingWork("probe", 100, 9_600)))["probe"]
    assert (line.unit, line.num_left, line.prompt_tokens) == ("texts", 100, 2_400)
    assert line.seconds == pytest.approx(6 + 2_400 / 200)
    assert "an upper bound: the rate of fluency (also us)" in line.source
    # Another measuring model's pace says nothing of the base model's.
    other = experiment(evaluate={"fluency": {"model": {"id": "other"}}})
    assert lines(told(ReadingWork("probe", 100, 9_600), asked=other))["probe"].seconds is None
    assert lines(told(ReadingWork("probe", 100, 9_600, is_done=True)))["probe"].seconds == 0


def test_greedy_tokens_go_at_the_pace_of_transformers_alone():
    stage = GreedyWork("activations/base", 40, 10, num_done=15)
    line = lines(told(stage))["activations/base"]
    assert (line.num_done, line.num_left, line.new_tokens, line.prompt_tokens) == (15, 25, 250, 300)
    assert line.seconds == pytest.approx(30 + 250 / 100)
    by_vllm = experiment(generate={"execution": {"engine": "vllm"}})
    assert lines(told(stage, asked=by_vllm))["activations/base"].seconds is None


def test_an_intervention_is_sampled_scored_and_evaluated():
    settings = {"base": ModelWork(40, 40), "offset-1": ModelWork(10, 0), "offset-2": ModelWork()}
    asked = experiment(
        intervene={
            "neurons": [[0, 1]],
            "offsets": [-1, -2],
            "generate": {"k": 2, "max_new_tokens": 8, "temperature": 1},
        }
    )
    found = lines(told(InterventionWork(40, settings), asked=asked))
    # 30 prompts of one setting and 40 of the other, two completions of 8 tokens each.
    generate, score = found["intervene: generate"], found["intervene: score"]
    assert (generate.num_done, generate.num_left, generate.num_completions, generate.new_tokens) == (50, 70, 140, 1120)
    assert generate.seconds == pytest.approx(11.2)
    assert (score.num_left, score.num_completions, score.seconds) == (80, 160, pytest.approx(3.2))
    assert found["intervene: start"].seconds == 30
    assert found["intervene: fluency"].seconds == pytest.approx(6 + 40 * 3 * 2 * 8 / 200)
    assert found["intervene: metrics"].seconds == pytest.approx(1 + 120 / 10)
    every = InterventionWork(40, dict.fromkeys(settings, ModelWork(40, 40)), is_done=True)
    assert told(every, asked=asked).seconds == 0
    with pytest.raises(InputError, match=r"generate\.tokens_per_second is missing"):
        told(InterventionWork(40, settings), asked=asked, generate=None)


def test_on_gpus_an_intervention_is_scored_while_it_is_sampled():
    stage = InterventionWork(40, {"base": ModelWork(), "offset-1": ModelWork()})
    estimated = told(stage, num_gpus=2)
    found = lines(estimated)
    assert estimated.saved_seconds == pytest.approx(80 / 50)
    assert found["intervene: generate"].seconds == pytest.approx(80 * 20 / 100 / 2)
    assert found["intervene: start"].gpu_hours == pytest.approx(2 * 30 / 3600)


def test_a_total_says_what_it_is_without():
    estimated = told(
        UnratedWork("transfer", "correlations", 1, is_done=True), UnratedWork("capability/base", "entries", 11)
    )
    assert (lines(estimated)["capability/base"].num_left, lines(estimated)["capability/base"].seconds) == (11, None)
    assert [note for note in estimated.notes if "without" in note] == [
        "the total is without capability/base: no rate is known, so they are not estimated"
    ]
    assert estimated.seconds == 0
