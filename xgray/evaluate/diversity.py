"""Diversity of completions: Dist-n, the number of distinct n-grams of a prompt's completions per token.

Dist-n (Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models") as DExperts (Liu et
al. 2021) and the paper compute it: the number of distinct n-grams in the k completions of one prompt, divided by their
number of tokens (not of n-grams), for n = 1, 2, 3; then averaged over prompts. No n-gram crosses from one completion
into the next. Tokens that decode to the empty text (special tokens, a lone word mark) are left out of both counts.

Under the protocol ``corrected``, tokens are equal if their ids are. Under ``released``, as in the paper's script,
tokens are equal if they decode to the same text: "the" at the start of a word and within one become the same token,
and so do all incomplete characters of a byte-level tokenizer, which affects some scripts far more than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from xgray.config import Switch
from xgray.stats.bootstrap import FloatArray, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORDERS = (1, 2, 3)
"""The n of Dist-n."""


def diversity(
    groups: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, protocol: Switch = "corrected"
) -> FloatArray:
    """Compute Dist-1, Dist-2 and Dist-3 of each group of completions.

    Args:
        groups: completions, usually those of one prompt in each group.
        protocol: how tokens are told apart (see the module).

    Returns:
        Ratios in [0, 1], ``(num_groups, 3)``; NaN for a group without tokens.
    """
    texts = list(chain.from_iterable(groups))
    if not texts:
        return np.full((len(groups), len(ORDERS)), np.nan)
    encoded = token_ids(texts, tokenizer)
    lengths = np.fromiter(map(len, encoded), np.int64)
    ids = np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum()))
    text_of = np.repeat(np.arange(len(texts)), lengths)
    group_of_text = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    distinct_ids, tokens = np.unique(ids, return_inverse=True)
    surfaces = [_surface(tokenizer, token_id) for token_id in distinct_ids.tolist()]
    is_visible = np.array([surface != "" for surface in surfaces], dtype=bool)[tokens]
    if protocol == "released":
        number_of: dict[str, int] = {}
        numbers = [number_of.setdefault(surface, len(number_of)) for surface in surfaces]
        tokens = np.array(numbers, dtype=np.int64)[tokens]
    tokens, text_of = tokens[is_visible], text_of[is_visible]
    return distinct_ratios(tokens, text_of, group_of_text[text_of], len(groups))


def distinct_ratios(tokens: IntArray, text_of: IntArray, group_of: IntArray, num_groups: int) -> FloatArray:
    """Compute Dist-1, Dist-2 and Dist-3 of each group from flat arrays, each ``(num_tokens,)``.

    Args:
        tokens: numbers from 0, in the order of the texts.
        text_of: index of each token's text, ascending.
        group_of: index of each token's group, ascending.

    Returns:
        ``(num_groups, 3)``; NaN for a group without tokens.
    """
    num_tokens = np.bincount(group_of, minlength=num_groups)
    width = int(tokens.max(initial=0)) + 1
    ratios = np.zeros((num_groups, len(ORDERS)))
    # A group and an n-gram are packed into one 64-bit number, the group in front. A pass takes as many groups as fit.
    step = max(1, (2**63 - 1) // width ** ORDERS[-1])
    for first in range(0, num_groups, step):
        begin, end = np.searchsorted(group_of, [first, first + step])
        token, text, keys = tokens[begin:end], text_of[begin:end], group_of[begin:end] - first
        for column, order in enumerate(ORDERS):
            keys = keys[: max(0, len(token) - order + 1)] * width + token[order - 1 :]
            within_text = np.sort(keys[text[: len(keys)] == text[order - 1 :]])
            is_first = np.diff(within_text, prepend=-1) != 0
            counts = np.bincount(within_text[is_first] // width**order, minlength=min(step, num_groups - first))
            ratios[first : first + step, column] = counts
    with np.errstate(invalid="ignore"):
        return ratios / num_tokens[:, None]


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each text, without special tokens.

    All texts are tokenized in one call on all cores. A fast tokenizer's Rust backend is called directly, because the
    Python wrapper of each result takes nearly as long as the tokenizing itself.
    """
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=2**20)
def _surface(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """Return what a single token decodes to; empty for special tokens and lone word marks."""
    return tokenizer.decode([token_id], skip_special_tokens=True)


def released_groups(completions: Sequence[Sequence[str]], k: int) -> list[list[str]]:
    """Return the groups of the paper's script: every k completions in a row form a group, whatever their prompts.

    Empty completions are dropped after grouping, and so are groups that only have empty ones.

    Args:
        completions: of each prompt; none of a prompt that failed.
        k: number of completions of each prompt in the run.
    """
    texts = list(chain.from_iterable(completions))
    groups = [[text for text in texts[start : start + k] if text] for start in range(0, len(texts), k)]
    return [group for group in groups if group]
