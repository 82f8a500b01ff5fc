"""Prepare the texts of a scorer's training: read the sources, hold texts out, and tokenize.

sources ──▶ prepare_texts ──▶ texts.parquet      token ids of the texts to train and to validate on
                              held_out.parquet   texts to measure the agreement on
                              texts.json         how many texts each source gave, and for what
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xgray.config import ScorerTraining
from xgray.data.scored_texts import SourceTexts, read_source, source_name, targets_without_variance
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.storage.folder import Folder
from xgray.train.encoder.fine_tune import TokenizedTexts, num_steps
from xgray.train.encoder.split import IntArray, Part, connected_groups, split_texts

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

TEXTS = "texts.parquet"
HELD_OUT = "held_out.parquet"
FACTS = "texts.json"
TOKENIZER_BATCH = 4096

OnCount = Callable[[int, int], None]


@dataclass(frozen=True)
class PreparedTexts:
    """The texts of a training, ready to be written."""

    texts: pa.Table
    """The columns ``tokens``, ``targets``, ``weight`` and ``part``."""
    held_out: pa.Table
    """The columns ``text``, ``language``, ``source`` and ``group`` (equal for translations and copies), and one for
    each attribute, null where it was not judged."""
    facts: dict[str, Any]

    def write(self, output: Folder) -> None:
        """Write the three files; the last one says that they are complete."""
        output.write_parquet(HELD_OUT, self.held_out)
        output.write_parquet(TEXTS, self.texts)
        output.write_json(FACTS, self.facts)


def prepare_texts(
    section: ScorerTraining,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: OnCount = lambda done, total: None,
) -> PreparedTexts:
    """Read the sources, hold texts out, and tokenize the others.

    Args:
        section: the training.
        tokenizer: the model's.
        on_progress: called with the number of texts that are tokenized, and of all.

    Raises:
        InputError: a source is wrong, nothing can be learned of an attribute, or too few texts are left to train on.
    """
    sources = read_sources(section)
    parts, together = hold_out(section, sources)
    targets = np.concatenate([source.targets for source in sources])
    check_texts(section, targets, parts)
    texts = [text for source in sources for text in source.texts]
    used = np.flatnonzero((parts == Part.TRAIN) | (parts == Part.VALIDATION))
    table, num_cut, num_tokens = _tokenized(section, tokenizer, [texts[index] for index in used], on_progress)
    weights = np.concatenate(
        [np.full(len(source.texts), stated.weight) for source, stated in zip(sources, section.sources, strict=True)]
    )
    facts = {
        "sources": _counts(sources, parts),
        "languages": [code for code in LANGUAGES if any(code in source.languages for source in sources)],
        "num_tokens": num_tokens,
        "num_cut": num_cut,
    }
    return PreparedTexts(
        texts=_with_targets(table, parts[used], targets[used], weights[used]),
        held_out=_held_out(section, sources, targets, parts, together),
        facts=facts,
    )


def read_sources(section: ScorerTraining) -> list[SourceTexts]:
    """Return the texts of all sources.

    Raises:
        InputError: a source is wrong, or two have the same name.
    """
    names = [source_name(source) for source in section.sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"sources: two are called {twice[0]!r}; give each a name of its own (name: ...)")
    return [read_source(source, section.attributes) for source in section.sources]


def hold_out(section: ScorerTraining, sources: Sequence[SourceTexts]) -> tuple[IntArray, IntArray]:
    """Return the :class:`~xgray.train.encoder.split.Part` and the group of every text, source after source."""
    texts = [text for source in sources for text in source.texts]
    together = connected_groups(texts, [group for source in sources for group in source.groups])
    is_test = np.concatenate(
        [np.full(len(source.texts), stated.held_out) for source, stated in zip(sources, section.sources, strict=True)]
    )
    is_validation = np.concatenate([source.is_validation for source in sources])
    return split_texts(texts, together, is_test, is_validation, section.held_out_share, section.seed), together


def check_texts(section: ScorerTraining, targets: npt.NDArray[np.float32], parts: IntArray) -> None:
    """Refuse a training that can learn nothing of an attribute, or has too few texts.

    Raises:
        InputError: the training is such.
    """
    train = targets[parts == Part.TRAIN]
    if reasons := targets_without_variance(train, section.attributes):
        raise InputError(f"attributes: nothing can be learned of {'; '.join(reasons)}. Leave it out, or add a source")
    num_steps(section, len(train))


def read_texts(output: Folder, part: Part) -> TokenizedTexts:
    """Return the texts of one part, from the file that :class:`PreparedTexts` wrote."""
    import pyarrow.compute as pc

    table = output.read_table(TEXTS)
    table = table.filter(pc.equal(table["part"], int(part)))
    num_attributes = len(table["targets"][0])
    lengths = pc.list_value_length(table["tokens"]).to_numpy()
    return TokenizedTexts(
        tokens=pc.list_flatten(table["tokens"]).to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        targets=pc.list_flatten(table["targets"]).to_numpy().reshape(-1, num_attributes),
        weights=table["weight"].to_numpy(),
    )


def _tokenized(
    section: ScorerTraining, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], on_progress: OnCount
) -> tuple[pa.Table, int, int]:
    """Return a table with the column ``tokens``, and how many texts were cut off and how many tokens there are."""
    import pyarrow as pa

    columns, num_cut, num_tokens = [], 0, 0
    for start in range(0, len(texts), TOKENIZER_BATCH):
        batch = list(texts[start : start + TOKENIZER_BATCH])
        whole = [len(ids) for ids in tokenizer(batch, verbose=False)["input_ids"]]
        ids = tokenizer(batch, truncation=True, max_length=section.max_length)["input_ids"]
        num_cut += sum(length > section.max_length for length in whole)
        num_tokens += sum(map(len, ids))
        columns.append(pa.array(ids, pa.list_(pa.int32())))
        on_progress(start + len(batch), len(texts))
    return pa.table({"tokens": pa.chunked_array(columns)}), num_cut, num_tokens


def _with_targets(
    table: pa.Table, parts: IntArray, targets: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]
) -> pa.Table:
    import pyarrow as pa

    flat = pa.FixedSizeListArray.from_arrays(pa.array(targets.ravel(), pa.float32()), targets.shape[1])
    table = table.append_column("targets", flat.cast(pa.list_(pa.float32())))
    table = table.append_column("weight", pa.array(weights, pa.float32()))
    return table.append_column("part", pa.array(parts, pa.int8()))


def _held_out(
    section: ScorerTraining,
    sources: Sequence[SourceTexts],
    targets: npt.NDArray[np.float32],
    parts: IntArray,
    together: IntArray,
) -> pa.Table:
    """The held-out texts with a column for each attribute, null where it was not judged."""
    import pyarrow as pa

    chosen = np.flatnonzero(parts == Part.TEST)
    names = [source.name for source in sources for _ in source.texts]
    texts = [text for source in sources for text in source.texts]
    languages = [code for source in sources for code in source.languages]
    columns: dict[str, Any] = {
        "text": pa.array([texts[index] for index in chosen], pa.string()),
        "language": pa.array([languages[index] for index in chosen], pa.string()),
        "source": pa.array([names[index] for index in chosen], pa.string()),
        "group": pa.array(together[chosen], pa.int64()),
    }
    for column, name in enumerate(section.attributes):
        columns[name] = pa.array(targets[chosen, column], pa.float32(), from_pandas=True)  # NaN becomes null
    return pa.table(columns)


def _counts(sources: Sequence[SourceTexts], parts: IntArray) -> dict[str, dict[str, Any]]:
    """How many texts of each source are in each part."""
    counts: dict[str, dict[str, Any]] = {}
    start = 0
    for source in sources:
        own = parts[start : start + len(source.texts)]
        start += len(source.texts)
        counts[source.name] = {f"num_{part.name.lower()}": int((own == part).sum()) for part in Part}
        counts[source.name]["num_left_out"] = source.num_left_out
        counts[source.name]["languages"] = [code for code in LANGUAGES if code in source.languages]
    return counts
