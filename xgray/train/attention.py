"""Attention within the trees of a packed row, for transformers' models.

A model's attention goes through transformers' interface, which hands the queries, keys and values of the whole row to
:func:`attend`. Neighbouring trees form groups of up to ``GROUP_TOKENS`` tokens, and all groups are one batch of
``scaled_dot_product_attention`` with a mask, so that the work grows with the length of the row and not with its square.
BLOOM does not use the interface; :func:`support_bloom` lets its layers do the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, dropout_add

from xgray.train.packing import Tree

NAME = "xgray_trees"
"""The attention's name in transformers' interface. No mask is registered for it, so that models make none."""
GROUP_TOKENS = 256
"""Trees are attended to together up to this many tokens. Larger groups need fewer calls, but compute more pairs of
tokens that do not see each other."""


class Layout:
    """Where the trees of a packed row are, as groups of at most ``length`` tokens.

    A group that is shorter than the longest is filled up with copies of the row's first token, whose outputs are not
    used.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device | str = "cpu") -> None:
        groups: list[list[Tree]] = []
        for tree in trees:
            if groups and sum(map(len, groups[-1])) + len(tree) <= GROUP_TOKENS:
                groups[-1].append(tree)
            else:
                groups.append([tree])
        sizes = [sum(map(len, group)) for group in groups]
        # Kernels on CUDA want masks whose rows are multiples of 8.
        self.length = max(sizes) if len(groups) == 1 else -(-max(sizes) // 8) * 8
        ids = torch.full((3, len(groups), self.length), -1)
        gather = torch.zeros(len(groups), self.length, dtype=torch.long)
        start = 0
        for index, (group, size) in enumerate(zip(groups, sizes, strict=True)):
            ids[:, index, :size] = torch.tensor(_coordinates(group)).T
            gather[index, :size] = torch.arange(start, start + size)
            start += size
        self.tree, self.branch, self.position = ids.to(device)
        self.gather = gather.flatten().to(device) if len(groups) > 1 else None
        is_token = self.tree.flatten() >= 0
        self.scatter = is_token.nonzero().flatten()
        self.positions = self.position.flatten()[is_token][None]
        """``(1, tokens)``: each token's position in its sequence."""
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None = None) -> Tensor:
        """Return the ``(groups, 1, length, length)`` mask: which key (last axis) each query sees.

        Args:
            window: The number of positions that a query sees, its own included; None for all before it.
        """
        if window not in self._masks:
            queries, keys = (slice(None), None, slice(None), None), (slice(None), None, None, slice(None))
            distance = self.position[queries] - self.position[keys]
            visible = (self.tree[queries] == self.tree[keys]) & (distance >= 0)
            visible &= (self.branch[keys] == 0) | (self.branch[queries] == self.branch[keys])
            if window is not None:
                visible &= distance < window
            self._masks[window] = visible
        return self._masks[window]

    def to_groups(self, states: Tensor) -> Tensor:
        """Return ``(1, heads, tokens, head_dim)`` states as ``(groups, heads, length, head_dim)``."""
        if self.gather is None:
            return states
        grouped = states[0].index_select(1, self.gather).unflatten(1, (-1, self.length))
        return grouped.transpose(0, 1)

    def from_groups(self, states: Tensor) -> Tensor:
        """Return ``(groups, heads, length, head_dim)`` states as ``(1, tokens, heads, head_dim)``."""
        by_token = states.transpose(1, 2)
        if self.gather is None:
            return by_token
        return by_token.flatten(0, 1).index_select(0, self.scatter)[None]


def _coordinates(group: Sequence[Tree]) -> list[tuple[int, int, int]]:
    """Return the tree, the branch (0 for the stem) and the position of each token of a group."""
    coordinates = []
    for index, tree in enumerate(group):
        coordinates += [(index, 0, position) for position in range(tree.stem)]
        for branch, size in enumerate(tree.branches, start=1):
            coordinates += [(index, branch, tree.stem + position) for position in range(size)]
    return coordinates


_active: Layout | None = None
"""The layout of the row that is computed in this process. Not an argument of the model, since not all models hand
arguments on to their layers, and gradient checkpointing calls layers again in the backward pass."""


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Let the model attend within the trees of a layout: in its forward pass, and in the backward pass that follows."""
    global _active
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    implementations = {key: config._attn_implementation for key, config in configs.items()}
    _active = layout
    for config in configs.values():
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        _active = None
        for key, config in configs.items():
            config._attn_implementation_internal = implementations[key]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output for a packed row, as transformers' attention interface wants it.

    Args:
        module: The layer's attention.
        query: ``(1, heads, tokens, head_dim)``.
        key: ``(1, key_value_heads, tokens, head_dim)``, and ``value`` likewise.
        attention_mask: None: the layout says what each token sees.
        scaling: What scores are multiplied by; by default ``head_dim ** -0.5``.
        dropout: The share of the attention's weights that is dropped.
        options: ``sliding_window``, the number of positions that a token sees, its own included; and ``s_aux``, sinks,
            which are not supported.

    Returns:
        ``(1, tokens, heads, head_dim)``, and None for the weights.

    Raises:
        NotImplementedError: the layer does what packed rows cannot.
    """
    layout = _active
    if layout is None or attention_mask is not None or options.get("s_aux") is not None or len(query) != 1:
        raise NotImplementedError(f"{type(module).__name__} cannot attend within packed rows")
    num_queries_per_key = query.shape[1] // key.shape[1]
    if num_queries_per_key > 1:
        key, value = (states.repeat_interleave(num_queries_per_key, dim=1) for states in (key, value))
    query, key, value = map(layout.to_groups, (query, key, value))
    mask = layout.mask(options.get("sliding_window"))
    output = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    return layout.from_groups(output), None


AttentionInterface.register(NAME, attend)


def support_bloom(model: PreTrainedModel) -> None:
    """Let BLOOM's layers attend within trees while a layout is active; other models are left as they are."""
    for module in model.modules():
        if isinstance(module, BloomAttention):
            module.forward = MethodType(_bloom_forward, module)


def _bloom_forward(
    self: BloomAttention, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute BLOOM's attention; within trees, ALiBi's distances are those of the sequences."""
    if _active is None:
        return type(self).forward(self, hidden_states, residual, alibi, *args, **kwargs)
    layout = _active
    query, key, value = map(layout.to_groups, self._reshape(self.query_key_value(hidden_states)))
    # Row positions times the heads' slopes; only slopes are needed of it, the second token's column holds them.
    slopes = alibi.view(-1, alibi.shape[-1])[:, 1]
    bias = slopes[:, None, None] * layout.position[:, None, None, :].to(slopes.dtype)
    bias = bias.masked_fill(~layout.mask(), float("-inf"))
    output = F.scaled_dot_product_attention(query, key, value, bias, scale=self.inv_norm_factor)
    states = self.dense(layout.from_groups(output).flatten(2))
    return dropout_add(states, residual, self.hidden_dropout, self.training), None
