"""transformers' own ``generate``, for machines and models without vLLM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from xgray.config import Generate
from xgray.generate.engine import Sample, Weights
from xgray.mechanism.neurons import Edit, install
from xgray.models.inference import inference
from xgray.models.load import end_tokens, load_causal_lm, load_tokenizer
from xgray.models.source import local_weights


class SeededChoice(LogitsProcessor):  # type: ignore[misc]
    """Makes the largest score a draw from the softmax of the scores, by Gumbel noise of each row's own generator.

    ``generate`` draws all rows from one generator, where each takes what the others leave.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores``, ``(num_rows, vocabulary)``, with the noise."""
        waits = torch.empty_like(scores)
        for row, generator in zip(waits, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - waits.log()


class TransformersEngine:
    """One prompt and its k samples at a time, so that a text does not depend on the prompts beside it.

    Nor does sample i on how many there are, but for the rounding of a batch of another size.
    """

    def __init__(self, weights: Weights, section: Generate) -> None:
        self._section = section
        self._tokenizer = load_tokenizer(weights.path, weights.revision)
        self._model = load_causal_lm(weights.path, weights.dtype, weights.revision)
        self._adapted: PeftModel | None = None
        for adapter in weights.adapters:
            if self._adapted is None:
                self._adapted = PeftModel.from_pretrained(
                    self._model, local_weights(adapter), adapter_name=_name(weights, adapter)
                )
            else:
                self._adapted.load_adapter(local_weights(adapter), adapter_name=_name(weights, adapter))
        if self._adapted is not None:
            self._adapted.eval()
        self._weights = weights
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def edit(self, edit: Edit | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = install(self._model, edit) if edit else []

    def close(self) -> None:
        """What it holds goes with it."""

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        if self._adapted is None:
            return [self._sample_one(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        if adapter is None:
            with self._adapted.disable_adapter():
                return [self._sample_one(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        self._adapted.set_adapter(_name(self._weights, adapter))
        return [self._sample_one(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def _sample_one(self, text: str, seed: int) -> list[Sample]:
        section, model = self._section, self._adapted or self._model
        num_rows = section.k if section.temperature > 0 else 1
        inputs = self._tokenizer([text] * num_rows, return_tensors="pt").to(self._model.device)
        chosen = LogitsProcessorList()
        if section.temperature > 0:
            seeds = range(seed, seed + num_rows)
            chosen += [TemperatureLogitsWarper(section.temperature), TopPLogitsWarper(section.top_p)]
            chosen.append(SeededChoice(seeds, self._model.device))
        with inference():
            ids = model.generate(
                **inputs,
                do_sample=False,
                logits_processor=chosen,
                max_new_tokens=section.max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        drawn = [self._sample_of(row) for row in ids[:, inputs["input_ids"].shape[1] :]]
        return drawn if section.temperature > 0 else drawn * section.k

    def _sample_of(self, ids: torch.Tensor) -> Sample:
        """The tokens up to the end-of-text token, which is counted as vLLM counts it."""
        stops = end_tokens(self._model)
        tokens = ids.tolist()
        length = next((index + 1 for index, token in enumerate(tokens) if token in stops), len(tokens))
        text = self._tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return Sample(text, length, "stop" if tokens[length - 1] in stops else "length")


def _name(weights: Weights, adapter: str) -> str:
    return f"adapter_{weights.adapters.index(adapter)}"
