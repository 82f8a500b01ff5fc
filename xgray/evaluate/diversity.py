"""Diversity of completions: Dist-n, the distinct n-grams of a prompt's completions over their tokens.

Dist-n (Li et al. 2016) as Liu et al. 2021 (DExperts) and the paper take it: over the k completions of one prompt
together, the number of different n-grams, none of them crossing from one completion into the next, divided by the
number of tokens (not of n-grams), for n = 1, 2, 3; then averaged over prompts. Tokens without text of their own
(special tokens, a lone word mark) count neither above nor below.

``corrected`` tells tokens apart by their id. ``released`` tells them apart by the text that each decodes to alone:
"the" at the start and within a word become one token, and so do all the incomplete characters of a byte-level
tokenizer, which touches some scripts far more than others.
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


def diversity(
    groups: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, protocol: Switch = "corrected"
) -> FloatArray:
    """Dist-1, Dist-2 and Dist-3 of each group of completions, ``(num_groups, 3)``; NaN where it has no token."""
    texts = list(chain.from_iterable(groups))
    if not texts:
        return np.full((len(groups), len(ORDERS)), np.nan)
    encoded = token_ids(texts, tokenizer)
    lengths = np.fromiter(map(len, encoded), np.int64)
    ids = np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum()))
    text_of = np.repeat(np.arange(len(texts)), lengths)
    group_of_text = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    known, tokens = np.unique(ids, return_inverse=True)
    surfaces = [_surface(tokenizer, token_id) for token_id in known.tolist()]
    visible = np.array([surface != "" for surface in surfaces], dtype=bool)[tokens]
    if protocol == "released":
        number: dict[str, int] = {}
        tokens = np.array([number.setdefault(surface, len(number)) for surface in surfaces], dtype=np.int64)[tokens]
    tokens, text_of = tokens[visible], text_of[visible]
    return distinct_ratios(tokens, text_of, group_of_text[text_of], len(groups))


def distinct_ratios(tokens: IntArray, text_of: IntArray, group_of: IntArray, num_groups: int) -> FloatArray:
    """Distinct n-grams over tokens of each group, ``(num_groups, 3)``, from flat arrays ``(num_tokens,)``.

    ``tokens`` are numbers from 0; groups and texts stand one after the other, the tokens of a text in order.
    """
    num_tokens = np.bincount(group_of, minlength=num_groups)
    width = int(tokens.max(initial=0)) + 1
    ratios = np.zeros((num_groups, len(ORDERS)))
    # An n-gram and its group are one 64-bit number, the group in front; as many groups at once as fit.
    step = max(1, (2**63 - 1) // width ** ORDERS[-1])
    for first in range(0, num_groups, step):
        begin, end = np.searchsorted(group_of, [first, first + step])
        token, text, keys = tokens[begin:end], text_of[begin:end], group_of[begin:end] - first
        for column, order in enumerate(ORDERS):
            keys = keys[: max(0, len(token) - order + 1)] * width + token[order - 1 :]
            whole = np.sort(keys[text[: len(keys)] == text[order - 1 :]])
            fresh = np.diff(whole, prepend=-1) != 0
            counts = np.bincount(whole[fresh] // width**order, minlength=min(step, num_groups - first))
            ratios[first : first + step, column] = counts
    with np.errstate(invalid="ignore"):
        return ratios / num_tokens[:, None]


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each text, without special tokens: all texts in one call, on all cores.

    Straight from the tokenizer's Rust part where it has one: the wrapping of each result costs nearly as much again.
    """
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=2**20)
def _surface(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token by itself; empty for special tokens and lone word marks."""
    return tokenizer.decode([token_id], skip_special_tokens=True)


def released_groups(completions: Sequence[Sequence[str]]) -> list[list[str]]:
    """The groups of the paper's script: every k lines are a group, whatever their prompts; empty lines are left out
    afterwards, and groups of nothing else with them. k is the first prompt's number of completions.
    """
    if not completions:
        return []
    lines = list(chain.from_iterable(completions))
    k = max(1, len(completions[0]))
    groups = [[line for line in lines[start : start + k] if line] for start in range(0, len(lines), k)]
    return [group for group in groups if group]
