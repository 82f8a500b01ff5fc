"""An engine on transformers' ``generate``, for machines and models without vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
)

from xgray.config import Generate
from xgray.generate.engine import Sample, Waiting, Weights
from xgray.generate.top_p import keep_nucleus
from xgray.mechanism.neurons import Edit, install
from xgray.models.complete import check_adapter
from xgray.models.inference import inference
from xgray.models.load import end_tokens, load_causal_lm, load_skeleton, load_tokenizer
from xgray.models.source import local_weights


class TopP(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the nucleus."""

    def __init__(self, top_p: float) -> None:
        self._top_p = top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the ``(num_rows, vocabulary)`` scores."""
        return keep_nucleus(scores, self._top_p)


class SeededChoice(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise from a generator of each row, so that the largest score is a sample of the scores' softmax.

    ``generate`` itself samples all rows from one generator, so a row would depend on the others.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        """Take a seed for each row."""
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return ``scores`` plus noise, ``(num_rows, vocabulary)``."""
        exponentials = torch.empty_like(scores)
        for row, generator in zip(exponentials, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - exponentials.log()


class TransformersEngine:
    """Samples one prompt at a time, so that a text does not depend on the other prompts.

    Nor does sample i depend on k, except for the rounding of a batch of another size.
    """

    def __init__(self, weights: Weights, section: Generate) -> None:
        self._section = section
        self._tokenizer = load_tokenizer(*weights.tokenizer_source)
        self._model = load_causal_lm(weights.path, weights.dtype, weights.revision)
        self._ends = end_tokens(self._model.config, self._tokenizer)
        self._adapted: PeftModel | None = None
        for adapter in weights.adapters:
            check_adapter(Path(local_weights(adapter)), load_skeleton(weights.path, weights.revision))
            name = _adapter_name(weights, adapter)
            if self._adapted is None:
                self._adapted = PeftModel.from_pretrained(self._model, local_weights(adapter), adapter_name=name)
            else:
                self._adapted.load_adapter(local_weights(adapter), adapter_name=name)
        if self._adapted is not None:
            self._adapted.eval()
        self._weights = weights
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def facts(self) -> dict[str, Any]:
        """Nothing beyond the section."""
        return {}

    def reload(self, weights: Weights) -> bool:
        """Return False: a new engine takes no longer."""
        return False

    def edit(self, edit: Edit | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = install(self._model, edit) if edit else []

    def close(self) -> None:
        """Do nothing: the memory is freed with the engine."""

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        if self._adapted is None:
            return self._sample_texts(texts, seeds)
        if adapter is None:
            with self._adapted.disable_adapter():
                return self._sample_texts(texts, seeds)
        self._adapted.set_adapter(_adapter_name(self._weights, adapter))
        return self._sample_texts(texts, seeds)

    def begin(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> Waiting:
        return lambda: self.sample(texts, seeds, adapter)

    def _sample_texts(self, texts: Sequence[str], seeds: Sequence[int]) -> list[list[Sample]]:
        return [self._sample_text(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def _sample_text(self, text: str, seed: int) -> list[Sample]:
        section, model = self._section, self._adapted or self._model
        num_rows = section.k if section.temperature > 0 else 1
        inputs = self._tokenizer([self._weights.prefix + text] * num_rows, return_tensors="pt").to(self._model.device)
        processors = LogitsProcessorList()
        if section.temperature > 0:
            seeds = range(seed, seed + num_rows)
            processors += [TemperatureLogitsWarper(section.temperature), TopP(section.top_p)]
            processors.append(SeededChoice(seeds, self._model.device))
        with inference():
            ids = model.generate(
                **inputs,
                # From the experiment alone: the checkpoint's own was taken away when the model was loaded.
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=section.max_new_tokens,
                    eos_token_id=self._ends,
                    pad_token_id=self._tokenizer.pad_token_id,
                ),
                logits_processor=processors,
            )
        samples = [self._decode(row) for row in ids[:, inputs["input_ids"].shape[1] :]]
        return samples if section.temperature > 0 else samples * section.k

    def _decode(self, ids: torch.Tensor) -> Sample:
        """Decode the tokens up to the end-of-text token, which counts as a token, as it does in vLLM."""
        ends = self._ends
        tokens = ids.tolist()
        length = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
        text = self._tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return Sample(text, length, "stop" if tokens[length - 1] in ends else "length")


def _adapter_name(weights: Weights, adapter: str) -> str:
    return f"adapter_{weights.adapters.index(adapter)}"
