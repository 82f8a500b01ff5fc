"""Read the result files of the paper's code, so that they can be compared with a run's. No code in them is run.

| file | what writes it |
|---|---|
| ``neuron-activations.pkl`` | the mean activation of the sources in each language, before and after tuning |
| ``{completions}_ppl.pt`` | the perplexities of one file of completions |
| ``{model}_{lang}_sentence_embeddings_all_layers_LBM_{begin}_{end}.pt`` | sentence states for retrieval |

Weights of a probe are read by :func:`xgray.mechanism.probe.read_probe_file`, lists of neurons by
:func:`xgray.storage.pickled.read_neurons`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xgray.errors import InputError
from xgray.languages import language
from xgray.storage.pickled import read_pickled

ActivationMeans = dict[str, float]
"""Mean activation by language code."""


def read_neuron_activations(path: str | Path) -> tuple[ActivationMeans, ActivationMeans]:
    """Return the mean activations before and after tuning.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    content = read_pickled(path)
    models = content if isinstance(content, dict) else {}
    if [str(name)[:3] for name in models] != ["pre", "pos"] or not all(map(_holds_numbers, models.values())):
        raise InputError(f"{path}: means by language under 'pre' and 'post' are expected, and the file holds others.")
    before, after = ({language(code).code: float(mean) for code, mean in model.items()} for model in models.values())
    return before, after


def read_perplexities(path: str | Path) -> npt.NDArray[np.float64]:
    """Return the perplexities of a file of completions, in its order, ``(num_measured,)``.

    The paper's script leaves out completions without text and values of 1e4 and more, and does not say which.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    content = read_pickled(path)
    if not isinstance(content, list) or not all(isinstance(value, float) for value in content):
        raise InputError(f"{path}: a list of perplexities is expected, and the file holds something else.")
    return np.array(content)


def read_sentence_states(paths: Sequence[str | Path]) -> npt.NDArray[np.float32]:
    """Return the sentence states of one language, ``(num_layers, num_texts, hidden_size)``.

    Layers are those of :mod:`xgray.mechanism.retrieval.states`, so that
    :func:`xgray.mechanism.retrieval.scores.pair_scores` takes the states of two languages.

    Args:
        paths: the files of the language; each holds the texts from ``begin`` to ``end`` in its name, and they are read
            in this order.

    Raises:
        InputError: a file cannot be read, holds something else, or texts are missing between two files.
    """
    ranges = sorted((_range_of(path), path) for path in paths)
    for ((_, end), _), ((begin, _), path) in pairwise(ranges):
        if begin != end:
            raise InputError(f"{path}: it begins with text {begin}, but the file before it ends with text {end}.")
    parts = []
    for (begin, end), path in ranges:
        layers = read_pickled(path)
        shapes = {np.shape(layer) for layer in layers} if isinstance(layers, list) else set()
        if len(shapes) != 1 or next(iter(shapes))[:1] != (end - begin,):
            raise InputError(f"{path}: a matrix of {end - begin} rows for each layer is expected, found {shapes}.")
        parts.append(np.stack(layers).astype(np.float32))
    if not parts:
        raise InputError("no files of sentence states are given.")
    return np.concatenate(parts, axis=1)


def _range_of(path: str | Path) -> tuple[int, int]:
    found = re.search(r"_LBM_(\d+)_(\d+)\.pt$", Path(path).name)
    if not found:
        raise InputError(f"{path}: the name must end with _LBM_BEGIN_END.pt, which says which texts the file holds.")
    return int(found[1]), int(found[2])


def _holds_numbers(means: Any) -> bool:
    return isinstance(means, dict) and all(isinstance(mean, float) for mean in means.values())
