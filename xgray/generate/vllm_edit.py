"""What vLLM mixes into its workers, so that neurons are edited in whatever processes the model lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xgray.config import Neuron
from xgray.mechanism.neurons import Edit, down_projections, install

if TYPE_CHECKING:
    import torch


class EditsNeurons:
    get_model: Any
    """The worker's own."""
    neuron_hooks: list[torch.utils.hooks.RemovableHandle]

    def edit_neurons(self, neurons: Sequence[Neuron], offset: float, multiplier: float) -> None:
        """Edit these neurons, and no others, from now on; those of them that lie in this process."""
        from vllm.distributed import get_tensor_model_parallel_rank

        for hook in getattr(self, "neuron_hooks", []):
            hook.remove()
        model = self.get_model()
        sizes = [int(getattr(one, "input_size_per_partition")) for one in down_projections(model)]  # noqa: B009
        edit = Edit(tuple((layer, index) for layer, index in neurons), offset, multiplier)
        self.neuron_hooks = install(model, edit.of_shard(get_tensor_model_parallel_rank(), sizes))
