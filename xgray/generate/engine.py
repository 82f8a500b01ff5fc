"""The protocol of engines, which sample completions of prompts.

An engine holds the weights of one base model, and samples with them as they are or with any LoRA adapter that was
trained on them.
"""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from xgray.config import Generate, Model
from xgray.generate.seeds import prompt_seed
from xgray.mechanism.neurons import Edit
from xgray.models.load import check_lengths, load_config
from xgray.models.source import local_weights, resolve
from xgray.rows import Completions, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

EngineName = Literal["vllm", "transformers", "dummy"]

MAX_LORA_RANK = 512
"""The largest rank that vLLM supports."""


@dataclass(frozen=True)
class Weights:
    """The base weights that an engine loads, and what it must be prepared for."""

    path: str
    """What :func:`xgray.models.source.local_weights` takes."""
    revision: str | None
    dtype: str
    adapters: tuple[str, ...] = ()
    """The adapters that it will sample with, as paths that :func:`xgray.models.source.local_weights` takes."""
    edits_neurons: bool = False
    """Whether neurons will be edited, which vLLM must know before it compiles the model."""
    prefix: str = ""
    """What the model reads before every prompt: the text of one special token, or nothing."""
    tokenizer: tuple[str, str | None] | None = None
    """The path and revision of the model whose tokenizer stands in where these weights come without one."""

    @property
    def tokenizer_source(self) -> tuple[str, str | None]:
        """The path and revision that the tokenizer is loaded from."""
        return self.tokenizer or (self.path, self.revision)


@dataclass(frozen=True)
class Sample:
    """One completion."""

    text: str
    """The completion without its prompt and without special tokens."""
    num_tokens: int
    """Sampled tokens, including an end-of-text token."""
    finish_reason: str
    """``stop`` after an end-of-text token, ``length`` at the most tokens allowed."""


Waiting = Callable[[], list[list[Sample]]]
"""Waits for samples that were begun; it is called once."""


class Engine(Protocol):
    """Samples completions of texts."""

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        """Sample k completions of each text.

        Args:
            texts: The prompts.
            seeds: A seed for each text; its sample i is drawn with seed + i. At temperature 0 seeds have no effect.
            adapter: One of the engine's adapters, or None for the base model.

        Returns:
            For each text its k samples.
        """
        ...

    def begin(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> Waiting:
        """Take texts to be sampled as :meth:`sample` does, and return at once.

        An engine that can do so samples them in the same steps as what was begun before. An error loses all that was
        begun.

        Returns:
            A function that waits, and returns what :meth:`sample` returns.
        """
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """How the engine samples, beyond what the section states, for the manifest."""
        ...

    def reload(self, weights: Weights) -> bool:
        """Replace the loaded weights by others of the same shapes, if the engine can do so without a new start.

        Nothing must be begun. Adapters and edits of neurons are in neither.

        Returns:
            Whether it has. If not, the engine may hold neither weights whole, and has to be closed.
        """
        ...

    def edit(self, edit: Edit | None) -> None:
        """Edit neurons in all following samples, in place of an earlier edit; None ends editing."""
        ...

    def close(self) -> None:
        """Free the memory; the engine cannot sample afterwards."""
        ...


def complete(
    engine: Engine, prompts: Sequence[Prompt], model: str, adapter: str | None, seed: int
) -> list[Completions]:
    """Return the completions of each prompt, in order.

    Args:
        engine: The engine to sample with.
        prompts: The prompts.
        model: The model's name in the rows.
        adapter: The model's adapter, or None.
        seed: The experiment's seed; each prompt's seed is :func:`~xgray.generate.seeds.prompt_seed`.
    """
    return begin_completions(engine, prompts, model, adapter, seed)()


def begin_completions(
    engine: Engine, prompts: Sequence[Prompt], model: str, adapter: str | None, seed: int
) -> Callable[[], list[Completions]]:
    """Hand the prompts to the engine, and return a function that waits for what :func:`complete` returns."""
    seeds = [prompt_seed(seed, prompt.prompt_id) for prompt in prompts]
    waiting = engine.begin([prompt.text for prompt in prompts], seeds, adapter)
    return lambda: [
        Completions(
            prompt_id=prompt.prompt_id,
            language=prompt.language,
            model=model,
            prompt=prompt.text,
            completions=[sample.text for sample in samples],
            token_counts=[sample.num_tokens for sample in samples],
            finish_reasons=[sample.finish_reason for sample in samples],
        )
        for prompt, samples in zip(prompts, waiting(), strict=True)
    ]


def check_prompts(
    blocks: Iterable[Sequence[Prompt]], tokenizer: PreTrainedTokenizerBase, section: Generate, context: int
) -> None:
    """Refuse prompts that cannot be continued, before anything is sampled.

    Args:
        blocks: The prompts, a few at a time.
        tokenizer: The model's tokenizer.
        section: The section ``generate`` of the experiment file.
        context: The model's context length in tokens.

    Raises:
        InputError: prompts are empty, or longer than the section or the context allows; the message names them.
    """
    check_lengths(
        blocks,
        tokenizer,
        min(section.max_prompt_tokens, context - section.max_new_tokens),
        "generate.max_prompt_tokens, and the model's context less generate.max_new_tokens",
    )


def adapter_config(adapter: str) -> dict[str, Any]:
    """Return the configuration of a PEFT adapter."""
    config: dict[str, Any] = json.loads((Path(local_weights(adapter)) / "adapter_config.json").read_text("utf-8"))
    return config


def serves_adapter(name: EngineName | None, adapter: str, base: Model, on_gpu: bool) -> bool:
    """Return whether the engine should apply the adapter itself; otherwise it should load the merged weights.

    vLLM applies plain LoRA to linear layers, but not to the embeddings or the head, and not in every architecture. On a
    CPU it gathers the adapter's matrices again for every token, which took 6 times as long as the merged weights and
    slows the base model as well.

    Args:
        name: the engine; None where nothing is sampled.
        adapter: what :func:`adapter_config` takes.
        base: the model that the adapter is put on.
        on_gpu: whether the engine runs on GPUs.
    """
    if name != "vllm":
        return True
    config = adapter_config(adapter)
    targets = config["target_modules"]
    embeddings = ("embed", "wte", "wpe", "lm_head")
    is_in_blocks = isinstance(targets, str) or not any(part in target for target in targets for part in embeddings)
    is_plain = not config.get("use_dora") and not config.get("modules_to_save") and config.get("bias", "none") == "none"
    if not (on_gpu and is_in_blocks and is_plain and config["r"] <= MAX_LORA_RANK):
        return False
    return adapts_in_vllm(load_config(resolve(base), base.revision).architectures[0])


ADAPTS = """
import sys
from vllm.model_executor.models.interfaces import supports_lora
from vllm.model_executor.models.registry import ModelRegistry

(architecture,) = sys.argv[1:]
is_known = architecture in ModelRegistry.models
print(is_known and supports_lora(ModelRegistry.models[architecture].load_model_cls()))
"""
"""A program that prints whether vLLM's class of an architecture applies LoRA."""


@functools.cache
def adapts_in_vllm(architecture: str) -> bool:
    """Return whether vLLM can apply LoRA adapters to a model of an architecture (``LlamaForCausalLM``).

    vLLM is asked in a process of its own: its import takes half a minute and a gigabyte, which a driver need not keep.
    An architecture without a class in vLLM, which vLLM runs through transformers, counts as one that cannot be adapted.
    """
    asked = subprocess.run([sys.executable, "-c", ADAPTS, architecture], capture_output=True, text=True, check=False)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        log.warning("vLLM does not say whether it adapts %s (%s): its weights are merged", architecture, reason)
    return asked.stdout.strip().endswith("True")
