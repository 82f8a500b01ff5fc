"""In how many passes a pipeline runs where the engines leave the scorer no GPU, on a cluster that is only described."""

from collections import Counter

import pytest

from tests.distributed.pipeline_driver import pipeline_models
from tests.score.tiny_classifier import tiny_classifier
from xgray.config import Generate, Score
from xgray.distributed import gpu_sharing
from xgray.distributed.actors import PipelineSettings
from xgray.distributed.gpu_sharing import GIB, gpu_passes
from xgray.distributed.nodes import ClusterCapacity
from xgray.storage.folder import Folder


@pytest.fixture
def settings(tmp_path):
    score = Score.model_validate(
        {"scorer": "classifier", "classifier": {"model": {"id": tiny_classifier(tmp_path / "classifier")}}}
    )
    generate = Generate.model_validate({"execution": {"engine": "vllm"}})
    return PipelineSettings(Folder(str(tmp_path)), "vllm", generate, score, 0)


def passes(monkeypatch, settings, models, num_gpus=1, memory=None):
    capacity = ClusterCapacity(Counter({(8, num_gpus): 1}), Counter(), Counter())
    monkeypatch.setattr(gpu_sharing, "cluster_capacity", lambda: capacity)
    monkeypatch.setattr(gpu_sharing, "_least_gpu_memory", lambda: memory)
    return gpu_passes(settings, models)


def test_an_engine_and_a_scorer_take_turns_on_a_gpu_or_share_it(monkeypatch, settings, tiny_model, tmp_path):
    models = pipeline_models(str(tmp_path), tiny_model, None, tiny_model)[:1]
    assert passes(monkeypatch, settings, models, num_gpus=2) == [settings]
    assert passes(monkeypatch, settings, []) == [settings]  # nothing is sampled: the scorer has the GPU
    sampling, scoring = passes(monkeypatch, settings, models)
    assert (sampling.generate, sampling.score) == (settings.generate, None)
    assert (scoring.generate, scoring.engine, scoring.score) == (None, None, settings.score)
    assert len(passes(monkeypatch, settings, models, memory=6 * GIB)) == 2  # too small for both
    (shared,) = passes(monkeypatch, settings, models, memory=24 * GIB)
    # The tiny classifier and 3 GiB are 12.5 % of 24 GiB.
    assert shared.scorer_gpu == shared.score.execution.gpu_memory_utilization == 0.13
    assert shared.generate.execution.gpu_memory_utilization == 0.79
