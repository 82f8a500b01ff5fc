"""``states/{language}.safetensors``: what a language's texts are to the model.

One tensor ``layer.{l}`` for each layer, ``(num_texts, hidden_size)`` in float32, beside ``num_tokens`` and
``truncated``, ``(num_texts,)``. A row is one distinct text: the repaired prompts in the order of the file, and then
those that HTML entities made others of.
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
    states: States
    num_tokens: npt.NDArray[np.int32]
    """Of each text, those that were read."""
    truncated: npt.NDArray[np.bool_]
    """Whether a text lost its end."""


def states_file(language: str) -> str:
    return f"{language}{SUFFIX}"


def write_states(folder: Folder, language: str, encoded: Encoded) -> None:
    from safetensors.numpy import save

    layers = {f"layer.{layer}": values for layer, values in enumerate(encoded.states)}
    rest = {"num_tokens": encoded.num_tokens, "truncated": encoded.truncated}
    folder.write_bytes(states_file(language), save({**layers, **rest}))


def read_states(folder: Folder, language: str) -> Encoded:
    """One language's file.

    Raises:
        StageError: it is damaged.
    """
    tensors = read_tensors(folder, states_file(language), "layer.0", "num_tokens", "truncated")
    num_layers = sum(name.startswith("layer.") for name in tensors)
    states = np.stack([tensors[f"layer.{layer}"] for layer in range(num_layers)])
    return Encoded(states, tensors["num_tokens"], tensors["truncated"])


def distinct(*versions: list[str]) -> list[str]:
    """The distinct texts of all versions of a language's prompts, each where it comes first."""
    return list(dict.fromkeys(text for texts in versions for text in texts))
