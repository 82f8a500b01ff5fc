"""Log-probabilities of the completions of preference pairs, with as few computed tokens as the model allows.

The model computes an arrangement of the pairs (:mod:`xgray.train.packing`). Only the outputs that predict counted
tokens reach the LM head. Few logits are kept for the backward pass; otherwise TRL's head computes them, which never
holds those of more than a part of the vocabulary, but computes them twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from xgray.train.attention import Layout, packed_attention, support_bloom
from xgray.train.memory import KEPT_LOGITS
from xgray.train.meter import BatchWork
from xgray.train.packing import ARRANGEMENTS, Arranged, Arrangement, arrange, num_tokens
from xgray.train.pairs import TokenizedPair

log = logging.getLogger(__name__)

NUM_CHECKED = 3
"""The pairs that arrangements are compared on."""
TOLERANCE = 1e-3
"""By how many nats log-probabilities of sequences may differ between arrangements, beside rounding."""
ROUNDING_FACTOR = 4
"""How many times the difference that rounding makes in padded rows is allowed between arrangements."""


class PairForward:
    """Computes log-probabilities of pairs with a causal language model."""

    arrangement: Arrangement
    """How pairs are arranged: the first of :data:`ARRANGEMENTS` that the model computes exactly."""

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        """Prepare a model.

        Args:
            model: The causal language model itself, without an adapter's or a strategy's wrapper. Its backbone returns
                only the outputs that predict counted tokens while a batch is computed.
            max_length: Sequences are cut to this many tokens.
        """
        self.arrangement = ARRANGEMENTS[0]
        self._model, self._max_length = model, max_length
        self._predictors: Tensor | None = None
        support_bloom(model)
        add_fused_lm_head(model, outputs=("log_probs",))
        model.base_model.register_forward_hook(self._keep_predictors)

    def _keep_predictors(self, backbone: torch.nn.Module, arguments: Any, output: Any) -> Any:
        if self._predictors is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self._predictors][None]
        return output

    @contextlib.contextmanager
    def computing(self, pairs: Sequence[TokenizedPair], device: torch.device) -> Iterator[Batch]:
        """Give a batch to call the model with; the backward pass belongs into the same block."""
        arranged = arrange(pairs, self.arrangement, self._max_length)
        num_sequence_tokens = sum(num_tokens(pair, self._max_length) for pair in pairs)
        batch = Batch(arranged, len(pairs), num_sequence_tokens, device)
        num_logits = len(batch.predictors) * self._model.config.get_text_config().vocab_size
        batch.keeps_logits = device.type == "cpu" and num_logits <= KEPT_LOGITS
        self._predictors = batch.predictors
        try:
            with contextlib.ExitStack() as contexts:
                if batch.layout:
                    contexts.enter_context(packed_attention(self._model, batch.layout))
                if device.type == "cpu":
                    contexts.enter_context(tied_gradient(self._model))
                yield batch
        finally:
            self._predictors = None

    def choose_arrangement(self, model: Any, pairs: Sequence[TokenizedPair], device: torch.device) -> None:
        """Choose the arrangement with the fewest computed tokens that the model computes exactly.

        Sequences are compared with padded rows. All workers call this, and the first decides.

        Args:
            model: The model as its strategy wraps it.
            pairs: Of these the first few are computed.
            device: The model's device.
        """
        checked = list(pairs[:NUM_CHECKED])
        is_training = model.training
        model.eval()
        expected = self._log_probs("padded", model, checked, device)
        alone = torch.stack([self._log_probs("padded", model, [pair], device) for pair in checked], dim=1).flatten()
        tolerance = TOLERANCE + ROUNDING_FACTOR * (expected - alone).abs().max().item()
        for arrangement in ARRANGEMENTS[:-1]:
            difference = self._difference(arrangement, model, checked, device, expected)
            (is_exact,) = broadcast_object_list([difference is not None and difference <= tolerance], from_process=0)
            if is_exact:
                break
            reason = "is not supported" if difference is None else f"changes log-probabilities by {difference:.2g} nats"
            log.warning("train: %s: %s %s", type(self._model).__name__, _WORDS[arrangement], reason)
        else:
            arrangement = ARRANGEMENTS[-1]
        self.arrangement = arrangement
        if is_training:
            model.train()

    def _difference(
        self, arrangement: Arrangement, model: Any, pairs: list[TokenizedPair], device: torch.device, expected: Tensor
    ) -> float | None:
        try:
            return float((self._log_probs(arrangement, model, pairs, device) - expected).abs().max())
        except Exception as error:  # whatever a model does with arguments that it does not expect
            log.debug("train: %s: %s", arrangement, error)
            return None

    def _log_probs(
        self, arrangement: Arrangement, model: Any, pairs: list[TokenizedPair], device: torch.device
    ) -> Tensor:
        self.arrangement = arrangement
        with torch.no_grad(), self.computing(pairs, device) as batch:
            return batch.log_probs(model)


@contextlib.contextmanager
def tied_gradient(model: PreTrainedModel) -> Iterator[None]:
    """Add the gradient of the tokens that are embedded to the LM head's, if both have the same weights.

    By default PyTorch makes a second array of the vocabulary's size, of zeros but for these tokens. Not on a GPU, where
    the order of the additions would vary.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = isinstance(embedding, torch.nn.Embedding) and head is not None and embedding.weight is head.weight
    if is_tied:
        embedding.sparse = True
    try:
        yield
    finally:
        if is_tied:
            embedding.sparse = False


_WORDS = {"shared": "sharing the prompt of a pair", "packed": "packing sequences into one row"}


class Batch:
    """The tensors of a batch of n pairs."""

    def __init__(self, arranged: Arranged, num_pairs: int, num_sequence_tokens: int, device: torch.device) -> None:
        self.num_pairs = num_pairs
        self.keeps_logits = False
        """Whether the backward pass finds all logits in memory."""
        self._num_row_tokens = sum(map(len, arranged.rows))
        width = max(map(len, arranged.rows))
        # Within trees, whichever of them are attended to together.
        parts = [width] * len(arranged.rows) if arranged.trees is None else map(len, arranged.trees)
        self._num_attention_pairs = sum(length**2 for length in parts)
        self.num_tokens = num_sequence_tokens
        """Tokens of all sequences; a prompt counts in both."""
        self.layout = Layout(arranged.trees, device) if arranged.trees is not None else None
        padded = torch.tensor([row + [0] * (width - len(row)) for row in arranged.rows], device=device)
        if self.layout is not None:
            self.inputs = {"input_ids": padded, "position_ids": self.layout.positions}
        else:
            lengths = torch.tensor([len(row) for row in arranged.rows], device=device)
            mask = (torch.arange(width, device=device) < lengths[:, None]).long()
            self.inputs = {"input_ids": padded, "attention_mask": mask}
        self.predictors = torch.tensor([row * width + column for row, column in arranged.predictors], device=device)
        self._targets = torch.tensor([arranged.targets], device=device)
        self._completions = torch.tensor(arranged.completions, device=device)
        self.num_counted = torch.bincount(self._completions, minlength=2 * num_pairs)
        """``(2n,)``: the counted tokens of each completion."""

    @property
    def work(self) -> BatchWork:
        """Return what the batch makes a model compute."""
        num_rows, width = self.inputs["input_ids"].shape
        padding = num_rows * width - self._num_row_tokens
        return BatchWork(self.num_tokens, num_rows * width, padding, len(self.predictors), self._num_attention_pairs)

    def log_probs(self, model: Any) -> Tensor:
        """Return the ``(2n,)`` summed log-probabilities in nats of the chosen, then of the rejected completions."""
        if self.keeps_logits:
            logits = model(**self.inputs, use_cache=False).logits[0]
            by_token = -cross_entropy(logits.float(), self._targets[0], reduction="none")
        else:
            outputs = model(**self.inputs, use_cache=False, shift_labels=self._targets, fused_lm_head=True)
            by_token = outputs.log_probs[0]
        return by_token.new_zeros(2 * self.num_pairs).index_add(0, self._completions, by_token)
