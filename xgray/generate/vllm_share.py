"""Let the samples of a prompt share all of its key-value cache inside vLLM, on a CPU.

vLLM's prefix cache shares whole blocks, of 32 tokens on a CPU, and computes the rest of the prompt again for each of
its k samples, often as many tokens as it then samples. Here the first sample of a prompt computes it; those after it
wait for a step, copy its blocks, and compute the prompt's last token alone, from which they sample. To vLLM that is a
connector to a cache outside itself, an interface meant for caches on other machines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA

if TYPE_CHECKING:
    from vllm.v1.request import Request

Prompt = tuple[tuple[int, ...], str | None]
"""The tokens of a prompt, and the adapter that it is read with."""


def sharing_options() -> dict[str, Any]:
    """Return the options with which an engine on a CPU shares prompts."""
    connector = KVTransferConfig(
        kv_connector=SharesPrompts.__name__, kv_connector_module_path=__name__, kv_role="kv_both"
    )
    return {"kv_transfer_config": connector}


@dataclass
class Copies(KVConnectorMetadata):  # type: ignore[misc]
    """The blocks to copy before a step."""

    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


class SharesPrompts(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """A connector whose cache is that of the requests that are running.

    vLLM makes two: one beside its scheduler, which decides, and one beside the model, which copies. Where a model's
    layers have caches of several kinds, such as sliding windows beside full ones, only whole blocks are shared.
    """

    requires_kv_delivery = False
    """Nothing is lost with a request that is stopped."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_size = self._vllm_config.cache_config.block_size
        self._has_one_group = len(self._kv_cache_config.kv_cache_groups) == 1
        self._holders: dict[Prompt, dict[str, list[int]]] = {}
        """For each prompt its running requests, and their blocks with its tokens."""
        self._fresh: set[Prompt] = set()
        """The prompts that the step which is being scheduled computes; none is cut in two on a CPU."""
        self._copies = Copies()
        self._caches: list[torch.Tensor] = []

    # Beside the scheduler.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens the request may copy, beyond those that the prefix cache has; None: ask again."""
        prompt = _prompt(request)
        num_missing = len(prompt[0]) - 1 - num_computed_tokens
        if num_missing <= 0 or prompt not in self._holders:
            return 0, False
        return (None if prompt in self._fresh else num_missing), False

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """Note the blocks of a request that enters the step, and what it copies."""
        if not self._has_one_group:
            return
        prompt = _prompt(request)
        num_tokens = len(prompt[0])
        own = blocks.get_block_ids()[0][: -(-num_tokens // self._block_size)]
        holders = self._holders.setdefault(prompt, {})
        if num_external_tokens:
            theirs = next(iter(holders.values()))
            first = (num_tokens - 1 - num_external_tokens) // self._block_size
            last = (num_tokens - 2) // self._block_size
            self._copies.sources += theirs[first : last + 1]
            self._copies.targets += own[first : last + 1]
        elif not holders:
            self._fresh.add(prompt)
        holders[request.request_id] = own

    def build_connector_meta(self, scheduler_output: Any) -> Copies:
        """Return what to copy before the step."""
        for request_id in scheduler_output.preempted_req_ids or ():  # their blocks are free
            for prompt in list(self._holders):
                self._release(prompt, request_id)
        copies, self._copies = self._copies, Copies()
        self._fresh.clear()
        return copies

    def request_finished_all_groups(self, request: Request, block_ids: Any) -> tuple[bool, None]:
        """Forget the blocks of a request that ends; vLLM may free them."""
        self._release(_prompt(request), request.request_id)
        return False, None

    def _release(self, prompt: Prompt, request_id: str) -> None:
        holders = self._holders.get(prompt, {})
        holders.pop(request_id, None)
        if not holders:
            self._holders.pop(prompt, None)

    # Beside the model.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the layers' caches, ``(blocks, heads, block, 2 head_dim)``."""
        self._caches = list(kv_caches.values())

    def start_load_kv(self, forward_context: Any, **options: Any) -> None:
        """Copy the blocks, before the step is computed."""
        copies = self._get_connector_metadata()
        if not copies.sources:
            return
        sources, targets = torch.tensor(copies.sources), torch.tensor(copies.targets)
        for cache in self._caches:
            cache[targets] = cache[sources]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: all is copied before the first layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **options: Any) -> None:
        """Do nothing: the cache is vLLM's own."""

    def wait_for_save(self) -> None:
        """Do nothing: nothing is saved."""


def _prompt(request: Request) -> Prompt:
    adapter = request.lora_request.lora_name if request.lora_request else None
    return tuple(request.prompt_token_ids), adapter
