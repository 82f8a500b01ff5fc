"""Engines: what turns prompts into completions, behind one small protocol.

An engine holds one set of base weights and serves them with any LoRA adapter that was trained on them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.seeds import prompt_seed
from xgray.rows import Completions, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EngineName = Literal["vllm", "transformers"]


@dataclass(frozen=True)
class Weights:
    """The base weights that an engine loads, and the adapters that it must be ready for."""

    path: str
    """What ``from_pretrained`` takes."""
    revision: str | None
    dtype: str
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One completion, without its prompt and without special tokens."""

    text: str
    num_tokens: int
    finish_reason: str


class Engine(Protocol):
    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        """k samples of each text; sample i of text j is drawn with the seed ``seeds[j] + i``."""
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


def engine_name(section: Generate) -> EngineName:
    """The engine that the section asks for; ``auto`` is vLLM where it is installed.

    Raises:
        InputError: the engine is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    wanted = section.execution.engine
    if wanted == "vllm" and not installed:
        raise InputError(
            "generate.execution.engine: vllm is not installed; make install EXTRA=cpu (or gpu), or take transformers"
        )
    if wanted == "auto":
        return "vllm" if installed else "transformers"
    return wanted


def build_engine(name: EngineName, weights: Weights, section: Generate) -> Engine:
    """Load the weights; this takes from seconds to minutes."""
    if name == "vllm":
        from xgray.generate.vllm_engine import VllmEngine

        return VllmEngine(weights, section)
    from xgray.generate.transformers_engine import TransformersEngine

    return TransformersEngine(weights, section)


def check_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, section: Generate, context: int
) -> None:
    """Refuse prompts that do not fit, before anything is generated.

    Raises:
        InputError: names the prompts that are longer than the section or the model's context allows.
    """
    limit = min(section.max_prompt_tokens, context - section.max_new_tokens)
    lengths = [len(ids) for ids in tokenizer([prompt.text for prompt in prompts])["input_ids"]]
    long = [f"{p.prompt_id} ({n})" for p, n in zip(prompts, lengths, strict=True) if n > limit]
    if long:
        more = f" and {len(long) - 5} more" if len(long) > 5 else ""
        raise InputError(
            f"prompts longer than {limit} tokens (generate.max_prompt_tokens, and the model's context less "
            f"generate.max_new_tokens): {', '.join(long[:5])}{more}"
        )


def context_length(config: Any) -> int:
    """The longest sequence that a model of this Hugging Face configuration takes; 2**31 where it names none (BLOOM)."""
    text_config = config.get_text_config()
    return int(
        getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None) or 2**31
    )


def lora_rank(adapter: str) -> int:
    """The rank of a PEFT LoRA adapter."""
    import json

    return int(json.loads((Path(adapter) / "adapter_config.json").read_text())["r"])


def serves_adapter(name: EngineName | None, adapter: str) -> bool:
    """Whether the engine can apply the adapter as it is; otherwise it is given the merged weights.

    vLLM applies LoRA to linear layers, not to the embeddings or the head.
    """
    import json

    if name != "vllm":
        return True
    targets = json.loads((Path(adapter) / "adapter_config.json").read_text())["target_modules"]
    outer = ("embed", "wte", "lm_head", "wpe")
    return isinstance(targets, str) or not any(part in target for target in targets for part in outer)
