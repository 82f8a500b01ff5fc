"""Models that do not fit a GPU, and the fields with which they do."""

import pytest

from tests.train.tiny import make_tiny_model
from xgray.config import Experiment, Train
from xgray.config.file import load_experiment
from xgray.config.shipped import shipped_experiment
from xgray.estimate.memory import PAPER_IDS, memory_notes
from xgray.estimate.work import ModelWork, TrainingWork, Work
from xgray.train.memory import PAPER_MODELS, training_memory

LLAMA = "meta-llama/Meta-Llama-3-8B"


def notes(machine, model, train=None, dtype="bfloat16", done=False, **sections):
    experiment = Experiment.model_validate({"name": "x", "model": {"id": model, "dtype": dtype}} | sections)
    training = TrainingWork(Train.model_validate(train or {}), 96, 4, 0, 16, 16 if done else 0)
    models = {"base": ModelWork(100, 100)} if done else {"base": ModelWork()}
    return list(memory_notes(machine, experiment, Work(100, {"dpo": training}, models, is_evaluated=done)))


def peak(name, **fields):
    return training_memory(PAPER_MODELS[name], Train.model_validate(fields)).gpu_gib


def test_the_papers_models_are_those_of_the_shipped_files():
    shipped = {name: load_experiment(shipped_experiment(name)).model.id for name in PAPER_MODELS}
    assert {name: model for model, name in PAPER_IDS.items()} == shipped


def test_what_fits_is_not_mentioned():
    assert notes("8xh100", "ai-forever/mGPT") == []
    assert notes("1xa10g", LLAMA, {"method": "full"}, "float32", done=True) == []


def test_recomputed_activations_make_a_training_fit():
    (note,) = notes("1xa10g", "ai-forever/mGPT", {"method": "full"})
    less = peak("mgpt", method="full", execution={"gradient_checkpointing": True})
    assert f"train/dpo: needs {peak('mgpt', method='full')} GiB of a GPU, one a10g has 22" in note
    assert note.endswith(f"train.execution.gradient_checkpointing: true takes {less}")


def test_several_gpus_share_a_training_before_its_method_changes():
    (note,) = notes("8xh100", LLAMA, {"method": "full"})
    assert "train.execution.strategy: zero3, train.execution.num_workers: 2" in note
    (note,) = notes("1xh100", LLAMA, {"method": "full"})
    assert "train.method: lora" in note
    assert "with another result" in note


def test_a_model_of_unknown_shape_needs_at_least_its_weights_and_what_tunes_them():
    *_, note = notes("1xh100", "made/llama-14b", {"method": "full"})[:1]
    assert "needs at least 158 GiB" in note  # 12 bytes each of 14e9, and CUDA


def test_an_engine_fits_in_16_bits_or_on_several_gpus():
    sampled = [note for note in notes("1xa10g", LLAMA, dtype="float32") if note.startswith("generate")]
    assert sampled[0].endswith("one a10g has 22: model.dtype: bfloat16 takes 21")  # (14.9 + 4) / 0.92
    sampled = [note for note in notes("8xh100", "made/llama-70b") if note.startswith("generate")]
    assert sampled[0].endswith("generate.execution.tensor_parallel: 2 takes 76")  # (65.2 + 4) / 0.92
    sampled = [note for note in notes("1xh100", "made/llama-70b") if note.startswith("generate")]
    assert "take GPUs with more memory" in sampled[0]


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"evaluate": {"fluency": {"model": {"id": "made/judge-30b"}}}}, "evaluate.fluency.model"),
        ({"score": {"scorer": "guard", "guard": {"model": {"id": "made/guard-30b"}}}}, "guard.model"),
    ],
)
def test_measuring_models_are_named_with_their_field(sections, field):
    (note,) = notes("1xh100", "ai-forever/mGPT", **sections)
    assert f"needs 115 GiB of a GPU, one h100 has 79: {field}" in note  # 4 bytes each of 30e9, and 3 GiB


def test_a_local_model_is_counted_in_full(tmp_path):
    folder = make_tiny_model(tmp_path / "tiny")
    assert notes("1xa10g", str(folder), {"batch_size": 2}) == []
    (note,) = notes("1xa10g", str(folder), {"method": "full", "batch_size": 100_000, "max_length": 1024})[:1]
    assert note.startswith("train/dpo: needs ")
    assert "at least" not in note
