"""Files of sentence states, ``states/{language}.safetensors``.

A file holds one tensor ``layer.{l}`` for each layer, ``(num_texts, hidden_size)`` in float32, and the tensors
``num_tokens`` and ``truncated``, both ``(num_texts,)``. Each row is one distinct text: first the prompts with repaired
HTML entities, in the order of the prompt file, then the released texts that differ from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xgray.storage.folder import Folder
from xgray.storage.tensors import read_tensors

SUFFIX = ".safetensors"
States = npt.NDArray[np.float32]
"""``(num_layers, num_texts, hidden_size)``."""


@dataclass(frozen=True)
class Encoded:
    """The sentence states of one language's texts."""

    states: States
    """``(num_layers, num_texts, hidden_size)``."""
    num_tokens: npt.NDArray[np.int32]
    """The number of tokens of each text that were read, ``(num_texts,)``."""
    truncated: npt.NDArray[np.bool_]
    """Whether each text was cut, ``(num_texts,)``."""


def states_file(language: str) -> str:
    """Return the name of a language's file."""
    return f"{language}{SUFFIX}"


def write_states(folder: Folder, language: str, encoded: Encoded) -> None:
    """Write one language's states as one complete file."""
    from safetensors.numpy import save

    layers = {f"layer.{layer}": values for layer, values in enumerate(encoded.states)}
    rest = {"num_tokens": encoded.num_tokens, "truncated": encoded.truncated}
    folder.write_bytes(states_file(language), save({**layers, **rest}))


def read_states(folder: Folder, language: str) -> Encoded:
    """Read one language's states.

    Raises:
        StageError: the file is damaged.
    """
    tensors = read_tensors(folder, states_file(language), "layer.0", "num_tokens", "truncated")
    num_layers = sum(name.startswith("layer.") for name in tensors)
    states = np.stack([tensors[f"layer.{layer}"] for layer in range(num_layers)])
    return Encoded(states, tensors["num_tokens"], tensors["truncated"])


def distinct(*versions: list[str]) -> list[str]:
    """Return the distinct texts of all versions of a language's prompts, in order of first occurrence."""
    return list(dict.fromkeys(text for texts in versions for text in texts))
