"""Engines: what turns prompts into completions, behind one small protocol.

An engine holds one set of base weights and serves them with any LoRA adapter that was trained on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from xgray.config import Generate
from xgray.generate.seeds import prompt_seed
from xgray.mechanism.neurons import Edit
from xgray.models.load import check_lengths
from xgray.models.source import local_weights
from xgray.rows import Completions, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EngineName = Literal["vllm", "transformers", "dummy"]

MAX_LORA_RANK = 512
"""The largest that vLLM takes."""


@dataclass(frozen=True)
class Weights:
    """The base weights that an engine loads, and the adapters that it must be ready for."""

    path: str
    """What ``from_pretrained`` takes, or the URI of what it takes: see :func:`xgray.models.source.local_weights`."""
    revision: str | None
    dtype: str
    adapters: tuple[str, ...] = ()
    edited: bool = False
    """Whether neurons will be edited, which an engine must know before it compiles anything."""


@dataclass(frozen=True)
class Sample:
    """One completion, without its prompt and without special tokens."""

    text: str
    num_tokens: int
    finish_reason: str


class Engine(Protocol):
    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        """k samples of each text, all from the seeds alone; greedy where the temperature is 0."""
        ...

    def edit(self, edit: Edit | None) -> None:
        """Edit neurons in all samples from now on; in none where it is None."""
        ...

    def close(self) -> None:
        """Give back the memory; nothing can be sampled afterwards."""
        ...


def complete(
    engine: Engine, prompts: Sequence[Prompt], model: str, adapter: str | None, seed: int
) -> list[Completions]:
    """The completions of ``prompts`` by ``model``, one row for each, in order."""
    seeds = [prompt_seed(seed, prompt.prompt_id) for prompt in prompts]
    samples = engine.sample([prompt.text for prompt in prompts], seeds, adapter)
    return [
        Completions(
            prompt_id=prompt.prompt_id,
            language=prompt.language,
            model=model,
            prompt=prompt.text,
            completions=[one.text for one in drawn],
            token_counts=[one.num_tokens for one in drawn],
            finish_reasons=[one.finish_reason for one in drawn],
        )
        for prompt, drawn in zip(prompts, samples, strict=True)
    ]


def check_prompts(
    blocks: Iterable[Sequence[Prompt]], tokenizer: PreTrainedTokenizerBase, section: Generate, context: int
) -> None:
    """Refuse prompts that do not fit, before anything is generated.

    Raises:
        InputError: names the prompts that are empty, or longer than the section or the model's context allows.
    """
    check_lengths(
        blocks,
        tokenizer,
        min(section.max_prompt_tokens, context - section.max_new_tokens),
        "generate.max_prompt_tokens, and the model's context less generate.max_new_tokens",
    )


def adapter_config(adapter: str) -> dict[str, Any]:
    """The configuration of a PEFT adapter."""
    config: dict[str, Any] = json.loads((Path(local_weights(adapter)) / "adapter_config.json").read_text("utf-8"))
    return config


def serves_adapter(name: EngineName | None, adapter: str, num_gpus: int) -> bool:
    """Whether the engine applies the adapter as it is, and well; otherwise it is better given the merged weights.

    vLLM applies plain LoRA to linear layers, not to the embeddings or the head. On a CPU it gathers the adapter's
    matrices anew for every token: 6 times slower than the merged weights, and slower for the base model as well.
    """
    if name != "vllm":
        return True
    config = adapter_config(adapter)
    targets = config["target_modules"]
    outer = ("embed", "wte", "wpe", "lm_head")
    inside = isinstance(targets, str) or not any(part in target for target in targets for part in outer)
    plain = not config.get("use_dora") and not config.get("modules_to_save") and config.get("bias", "none") == "none"
    return num_gpus > 0 and inside and plain and config["r"] <= MAX_LORA_RANK
