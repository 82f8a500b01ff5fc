"""Edit neurons inside vLLM's worker processes, which hold the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xgray.config import Neuron
from xgray.mechanism.neurons import Edit, down_projections, install
from xgray.models.vllm_worker import EndsWithDriver

if TYPE_CHECKING:
    import torch


class EditsNeurons(EndsWithDriver):
    """Methods that vLLM adds to its worker class (``worker_extension_cls``)."""

    get_model: Any
    """The worker's method that returns its part of the model."""
    neuron_hooks: list[torch.utils.hooks.RemovableHandle]

    def edit_neurons(self, neurons: Sequence[Neuron], offset: float, multiplier: float) -> None:
        """Edit those of the neurons that are in this process, in place of an earlier edit."""
        from vllm.distributed import get_tensor_model_parallel_rank

        for hook in getattr(self, "neuron_hooks", []):
            hook.remove()
        model = self.get_model()
        sizes = [int(projection.input_size_per_partition) for projection in down_projections(model)]
        edit = Edit(tuple((layer, index) for layer, index in neurons), offset, multiplier)
        self.neuron_hooks = install(model, edit.local_part(get_tensor_model_parallel_rank(), sizes))
