"""Stage ``retrieve``: how well each language's sentences find their English translations, layer by layer (Figure 4).

    parallel prompts ─▶ retrieve/states/{language}.safetensors ─▶ retrieve/metrics.json

Prompts are encoded in two versions: with repaired HTML entities, and as released. A unit of work is one language.
"""

from __future__ import annotations

import time
from typing import Any, get_args

import numpy as np

from xgray.config import Experiment, Model, Retrieve
from xgray.data.parallel import parallel_fingerprint, read_parallel
from xgray.errors import InputError
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.mechanism.metrics_file import EntityVersion, RetrievalScores, RetrieveMetrics, TextCounts
from xgray.mechanism.retrieval.files import Encoded, States, distinct, read_states, states_file
from xgray.mechanism.retrieval.scores import NUM_NEIGHBORS, PIVOT, pair_scores, summary
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.stats.bootstrap import FloatArray
from xgray.storage.folder import Folder

VERSIONS: tuple[EntityVersion, ...] = get_args(EntityVersion)
"""The versions of the prompts: with repaired HTML entities, and as the files have them."""
Texts = dict[EntityVersion, list[str]]
"""One language's prompts in both versions."""


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the retrieval scores depend on: the base model, the parallel prompts, the section and the seed."""
    experiment, section = plan.experiment, plan.experiment.retrieve
    assert section is not None
    languages = list(dict.fromkeys([PIVOT, *experiment.languages]))
    return inside_payload(
        plan,
        section,
        {"parallel": parallel_fingerprint(section.parallel, languages)},
        languages=experiment.languages,
        intervals=experiment.evaluate.model_dump(include={"confidence", "resamples"}),
        seed=experiment.seed,
    )


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Encode every language that has no states yet, and write ``metrics.json``. Ray must be running.

    Raises:
        InputError: the parallel prompts cannot be read or are too few, or the model cannot be loaded.
        StageError: workers died repeatedly. Results so far are kept: the same call continues.
    """
    from xgray.distributed.workers import Work, compute_missing

    began = time.perf_counter()
    experiment, section = plan.experiment, plan.experiment.retrieve
    assert section is not None
    texts = read_texts(experiment)
    output = planned.folder / "states"
    units = [
        Work(states_file(language), 1, (language, distinct(*versions.values()))) for language, versions in texts.items()
    ]
    computed = compute_missing(
        RetrieveWorker,
        (experiment.model.model_copy(update={"dtype": section.dtype}), section, output),
        units,
        output,
        "retrieve",
        section.execution.num_workers,
        lambda done, total: on_progress(planned.label, done, total),
    )
    metrics = measure(texts, output, experiment)
    planned.folder.write_json("metrics.json", metrics)
    texts_by_language = metrics["texts"].values()
    return StageResult(
        counts={
            "num_languages": computed.total,
            "num_reused": computed.reused,
            "num_texts": sum(counts["num_texts"] for counts in texts_by_language),
            "num_tokens": sum(counts["num_tokens"] for counts in texts_by_language),
            "num_truncated": sum(counts["num_truncated"] for counts in texts_by_language),
        },
        measured={"accuracy": metrics["average"][section.entities]["accuracy"]["value"]},
        device=computed.device,
        seconds=time.perf_counter() - began,
    )


def read_texts(experiment: Experiment) -> dict[str, Texts]:
    """Read the parallel prompts of English and of every language of the experiment, in both versions.

    Raises:
        InputError: the prompts cannot be read, there are fewer than two, or English is the only language.
    """
    assert experiment.retrieve is not None
    folder = experiment.retrieve.parallel
    languages = list(dict.fromkeys([PIVOT, *experiment.languages]))
    if languages == [PIVOT]:
        raise InputError(
            "retrieve: other languages are measured against English, but languages has no other. "
            "Add one, or leave out the section retrieve."
        )
    by_version = {
        version: read_parallel(folder, languages, repair_entities=version == "corrected") for version in VERSIONS
    }
    num_prompts = len(by_version["corrected"][PIVOT])
    if num_prompts < 2:
        raise InputError(f"retrieve.parallel: {folder}: {num_prompts} prompt, but retrieval needs at least two.")
    return {language: {version: by_version[version][language] for version in VERSIONS} for language in languages}


def measure(texts: dict[str, Texts], output: Folder, experiment: Experiment) -> RetrieveMetrics:
    """Compute the retrieval scores of each language against English, and their average, from the files of states.

    Args:
        texts: by language, English among them.
        output: the folder of the files of states.
    """
    assert experiment.retrieve is not None
    confidence = experiment.evaluate.confidence
    encoded = read_states(output, PIVOT)
    english = _states_by_version(encoded, texts[PIVOT])
    counts = {PIVOT: _counts(encoded, texts[PIVOT])}
    languages: dict[str, dict[EntityVersion, RetrievalScores]] = {}
    sums: dict[EntityVersion, dict[str, FloatArray]] = {version: {} for version in VERSIONS}
    for language in texts:
        if language == PIVOT:
            continue
        encoded = read_states(output, language)
        counts[language] = _counts(encoded, texts[language])
        states = _states_by_version(encoded, texts[language])
        languages[language] = {}
        for version in VERSIONS:
            scores = pair_scores(states[version], english[version])
            languages[language][version] = summary(scores, confidence)
            for metric, values in scores.items():
                sums[version][metric] = sums[version].get(metric, 0) + values
    average = {
        # The languages' sentences are translations, so that each sentence's mean over them is one value.
        version: summary({metric: values / len(languages) for metric, values in by_metric.items()}, confidence)
        for version, by_metric in sums.items()
    }
    return {
        "pivot": PIVOT,
        "entities": experiment.retrieve.entities,
        "num_prompts": len(texts[PIVOT]["corrected"]),
        "num_layers": len(english["corrected"]),
        "num_neighbors": NUM_NEIGHBORS,
        "confidence": confidence,
        "texts": counts,
        "languages": languages,
        "average": average,
    }


def _states_by_version(encoded: Encoded, texts: Texts) -> dict[EntityVersion, States]:
    """Return the states of each version's prompts, ``(num_layers, num_prompts, hidden_size)``."""
    row_of = {text: row for row, text in enumerate(distinct(*texts.values()))}
    return {version: encoded.states[:, [row_of[text] for text in prompts]] for version, prompts in texts.items()}


def _counts(encoded: Encoded, texts: Texts) -> TextCounts:
    return {
        "num_texts": len(encoded.num_tokens),
        "num_tokens": int(encoded.num_tokens.sum()),
        "num_truncated": int(np.count_nonzero(encoded.truncated)),
        "num_with_entities": sum(left != right for left, right in zip(*texts.values(), strict=True)),
    }


class RetrieveWorker:
    """Encodes texts with one copy of the model."""

    def __init__(self, model: Model, section: Retrieve, output: Folder) -> None:
        from xgray.models.load import load_causal_lm, load_tokenizer
        from xgray.models.source import resolve

        self.section = section
        self.output = output
        path = resolve(model)
        self.model = load_causal_lm(path, model.dtype, model.revision)
        self.tokenizer = load_tokenizer(path, model.revision)

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Encode and write the texts of one language, and return the name of the device."""
        from xgray.mechanism.retrieval.files import write_states
        from xgray.mechanism.retrieval.states import encode
        from xgray.models.load import device_name

        language, texts = unit
        section = self.section
        encoded = encode(self.model, self.tokenizer, texts, section.max_tokens, section.execution.batch_size)
        write_states(self.output, language, encoded)
        return device_name()
