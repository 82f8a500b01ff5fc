"""Replace the weights of a model inside vLLM's worker processes, which hold it."""

from __future__ import annotations

from typing import Any

from xgray.models.vllm_worker import EndsWithDriver


class ReloadsWeights(EndsWithDriver):
    """Methods that vLLM adds to its worker class (``worker_extension_cls``)."""

    get_model: Any
    """The worker's method that returns its part of the model."""
    reload_weights: Any
    """The worker's method that reads a checkpoint into the model."""

    def replace_weights(self, path: str) -> None:
        """Read the weights in the folder ``path`` in place of those that are loaded."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=path)
        for layer in self.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                # On a CPU the head computes with a packed copy of its weights. Where they are those of the embeddings,
                # no weights of the head are read, and vLLM 0.32 would leave the copy as it was.
                layer.quant_method.process_weights_after_loading(layer)
