"""Hold out texts: whole groups, so that no translation and no copy of a held-out text is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Part(IntEnum):
    """What a text is used for."""

    TRAIN = 0
    VALIDATION = 1
    """Its loss chooses the checkpoint."""
    TEST = 2
    """The agreement is measured on it."""
    REMOVED = 3
    """Not used: another source, which is held out as a whole, has the text or a translation of it."""


def connected_groups(texts: Sequence[str], groups: Sequence[str]) -> IntArray:
    """Return a number for each text that is the same for texts which are held out together, ``(n,)``.

    Texts are together if they are equal but for case and white space, if their groups are equal, and if both are
    together with a third.

    Args:
        texts: ``n`` texts.
        groups: the group of each, empty for none.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names: dict[tuple[str, str], int] = {}
    edges = []
    for index, (text, group) in enumerate(zip(texts, groups, strict=True)):
        keys = [("text", " ".join(text.split()).casefold()), *([("group", group)] if group else [])]
        edges += [(index, len(texts) + names.setdefault(key, len(names))) for key in keys]
    rows, columns = np.array(edges, np.int64).T
    size = len(texts) + len(names)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][: len(texts)], np.int64)


def split_texts(
    texts: Sequence[str], together: IntArray, is_test: BoolArray, is_held_out: BoolArray, share: float, seed: int
) -> IntArray:
    """Return the :class:`Part` of each text, ``(n,)``.

    Groups are held out in the order of a hash of their texts and the seed, until ``share`` of the texts is reached;
    every second one of them is for validation, the others for the test. So the order of the texts and of the sources
    does not matter.

    Args:
        texts: ``n`` texts.
        together: what :func:`connected_groups` returns for them, ``(n,)``.
        is_test: texts of sources that are held out as a whole, ``(n,)``. Texts of other sources that are together with
            one of them are removed.
        is_held_out: texts that a file itself holds out, ``(n,)``; their groups are held out.
        share: of the texts that are not in ``is_test``.
        seed: decides which groups are held out.
    """
    keys: dict[int, bytes] = {}
    for text, group in zip(texts, together.tolist(), strict=True):
        digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
        keys[group] = min(keys.get(group, digest), digest)
    test_groups = set(together[is_test].tolist())
    stated = set(together[is_held_out].tolist()) - test_groups
    counts = np.bincount(together)
    order = sorted(set(together.tolist()) - test_groups, key=lambda group: (group not in stated, keys[group]))
    wanted = share * sum(int(counts[group]) for group in order)
    part_of = dict.fromkeys(test_groups, Part.REMOVED)
    num_held_out = 0
    for position, group in enumerate(order):
        is_in = group in stated or num_held_out < wanted or position < 2
        part_of[group] = (Part.VALIDATION, Part.TEST)[position % 2] if is_in else Part.TRAIN
        num_held_out += int(counts[group]) if is_in else 0
    parts = np.array([part_of[group] for group in together.tolist()], np.int64)
    parts[is_test] = Part.TEST
    return parts
