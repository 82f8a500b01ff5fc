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
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from xgray.config import Protocol
from xgray.evaluate.bootstrap import FloatArray, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORDERS = (1, 2, 3)


def diversity(
    groups: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, protocol: Protocol = "corrected"
) -> FloatArray:
    """Dist-1, Dist-2 and Dist-3 of each group of completions, ``(num_groups, 3)``; NaN where it has no token."""
    texts = list(chain.from_iterable(groups))
    if not texts:
        return np.full((len(groups), len(ORDERS)), np.nan)
    group_of_text = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ids = np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum()))
    text_of = np.repeat(np.arange(len(texts)), lengths)

    known, tokens = np.unique(ids, return_inverse=True)
    surfaces = tokenizer.batch_decode(known[:, None].tolist(), skip_special_tokens=True)
    visible = np.array([surface != "" for surface in surfaces])[tokens]
    if protocol == "released":
        number: dict[str, int] = {}
        tokens = np.array([number.setdefault(surface, len(number)) for surface in surfaces])[tokens]
    tokens, text_of = tokens[visible], text_of[visible]
    return distinct_ratios(tokens, text_of, group_of_text[text_of], len(groups))


def distinct_ratios(tokens: IntArray, text_of: IntArray, group_of: IntArray, num_groups: int) -> FloatArray:
    """Distinct n-grams over tokens of each group, ``(num_groups, 3)``, from flat arrays ``(num_tokens,)``.

    ``tokens`` are numbers from 0; the tokens of a text stand side by side and in order.
    """
    num_tokens = np.bincount(group_of, minlength=num_groups).astype(float)
    num_tokens[num_tokens == 0] = np.nan
    width = int(tokens.max(initial=0)) + 1
    ratios = np.empty((num_groups, len(ORDERS)))
    grams = tokens
    for column, order in enumerate(ORDERS):
        if order > 1:
            # The n-gram is numbered by the (n-1)-gram before it and its last token; numbering afresh each time keeps
            # the products within 64 bits.
            grams = np.unique(grams[:-1] * width + tokens[order - 1 :], return_inverse=True)[1]
            whole = text_of[: len(grams)] == text_of[order - 1 :]
        else:
            whole = np.ones(len(grams), dtype=bool)
        num_grams = int(grams.max(initial=0)) + 1
        distinct = np.unique(group_of[: len(grams)][whole] * num_grams + grams[whole])
        ratios[:, column] = np.bincount(distinct // num_grams, minlength=num_groups) / num_tokens
    return ratios


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
