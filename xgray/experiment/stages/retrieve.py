"""The retrieve stage: parallel prompts to sentence states, and these to scores of each language against English.

prompts, repaired and as released ─▶ states/{language}.safetensors ─▶ metrics.json
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from xgray.config import Experiment, Model, Retrieve
from xgray.data.parallel import parallel_fingerprint, read_parallel
from xgray.errors import InputError
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.mechanism.retrieval.files import Encoded, States, distinct, read_states, states_file
from xgray.mechanism.retrieval.scores import NUM_NEIGHBORS, PIVOT, pair_scores, summary
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.stats.bootstrap import FloatArray, draw_seed
from xgray.storage.folder import Folder

VERSIONS = ("corrected", "released")
"""Of the prompts: with HTML entities repaired, and as the files have them."""


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
    """Write the states of every language that has none yet, and ``metrics.json``.

    Raises:
        InputError: the parallel prompts are wrong or too few, or the model cannot be loaded.
        StageError: workers died; the same call goes on where it stopped.
    """
    from xgray.distributed.workers import Work, make_missing

    began = time.perf_counter()
    experiment, section = plan.experiment, plan.experiment.retrieve
    assert section is not None
    texts = read_texts(experiment)
    output = planned.folder / "states"
    units = [
        Work(states_file(language), 1, (language, distinct(*versions.values()))) for language, versions in texts.items()
    ]
    made = make_missing(
        RetrieveWorker,
        (experiment.model, section, output),
        units,
        output,
        "retrieve",
        section.execution.num_workers,
        lambda done, total: on_progress(planned.label, done, total),
    )
    metrics = measure(texts, output, experiment)
    planned.folder.write_json("metrics.json", metrics)
    languages = metrics["texts"].values()
    counts = {name: sum(own[name] for own in languages) for name in ("num_texts", "num_tokens", "num_truncated")}
    return StageResult(
        counts={"num_languages": made.total, "num_reused": made.reused, **counts},
        measured={"accuracy": metrics["average"][section.entities]["accuracy"]["value"]},
        device=made.device,
        seconds=time.perf_counter() - began,
    )


def read_texts(experiment: Experiment) -> dict[str, dict[str, list[str]]]:
    """The parallel prompts of English and every language of the experiment, in both versions.

    Raises:
        InputError: they are wrong, or so few that a rank says nothing.
    """
    assert experiment.retrieve is not None
    folder = experiment.retrieve.parallel
    languages = list(dict.fromkeys([PIVOT, *experiment.languages]))
    if languages == [PIVOT]:
        raise InputError("retrieve: every language is measured against English, so languages must name another one")
    versions = {name: read_parallel(folder, languages, repair_entities=name == "corrected") for name in VERSIONS}
    num_prompts = len(versions["corrected"][PIVOT])
    if num_prompts < 2:
        raise InputError(
            f"retrieve.parallel: {folder}: {num_prompts} prompt; retrieval wants at least two to choose of"
        )
    return {language: {name: versions[name][language] for name in VERSIONS} for language in languages}


def measure(texts: dict[str, dict[str, list[str]]], output: Folder, experiment: Experiment) -> dict[str, Any]:
    """``metrics.json``, from the files of states."""
    assert experiment.retrieve is not None
    drawn = experiment.evaluate
    # The same sentences in every language, so that the average of languages is drawn over sentences as well.
    seed = draw_seed(experiment.seed, "retrieve")
    english_rows = read_states(output, PIVOT)
    english = _versions(english_rows, texts[PIVOT])
    counted = {PIVOT: _counts(english_rows, texts[PIVOT])}
    languages: dict[str, dict[str, Any]] = {}
    sums: dict[str, dict[str, FloatArray]] = {name: {} for name in VERSIONS}
    for language in texts:
        if language == PIVOT:
            continue
        rows = read_states(output, language)
        counted[language] = _counts(rows, texts[language])
        own = _versions(rows, texts[language])
        languages[language] = {}
        for name in VERSIONS:
            scores = pair_scores(own[name], english[name])
            languages[language][name] = summary(scores, drawn.confidence, drawn.resamples, seed)
            for metric, values in scores.items():
                sums[name][metric] = sums[name].get(metric, 0) + values
    average = {
        name: summary(
            {metric: values / len(languages) for metric, values in one.items()},
            drawn.confidence,
            drawn.resamples,
            seed,
        )
        for name, one in sums.items()
    }
    return {
        "pivot": PIVOT,
        "entities": experiment.retrieve.entities,
        "num_prompts": len(texts[PIVOT]["corrected"]),
        "num_layers": len(english["corrected"]),
        "num_neighbors": NUM_NEIGHBORS,
        "confidence": drawn.confidence,
        "resamples": drawn.resamples,
        "texts": counted,
        "languages": languages,
        "average": average,
    }


def _versions(rows: Encoded, versions: dict[str, list[str]]) -> dict[str, States]:
    """The states of each version's prompts, ``(num_layers, num_prompts, hidden_size)``."""
    place = {text: at for at, text in enumerate(distinct(*versions.values()))}
    return {name: rows.states[:, [place[text] for text in texts]] for name, texts in versions.items()}


def _counts(rows: Encoded, versions: dict[str, list[str]]) -> dict[str, int]:
    return {
        "num_texts": len(rows.num_tokens),
        "num_tokens": int(rows.num_tokens.sum()),
        "num_truncated": int(np.count_nonzero(rows.truncated)),
        "num_with_entities": sum(left != right for left, right in zip(*versions.values(), strict=True)),
    }


class RetrieveWorker:
    """One copy of the model."""

    def __init__(self, model: Model, section: Retrieve, output: Folder) -> None:
        from xgray.models.load import load_causal_lm, load_tokenizer
        from xgray.models.source import resolve

        self.section = section
        self.output = output
        path = resolve(model)
        self.model = load_causal_lm(path, model.dtype, model.revision)
        self.tokenizer = load_tokenizer(path, model.revision)

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Encode and write one language's texts; the device."""
        from xgray.mechanism.retrieval.files import write_states
        from xgray.mechanism.retrieval.states import encode
        from xgray.models.load import device_name

        language, texts = unit
        section = self.section
        encoded = encode(self.model, self.tokenizer, texts, section.max_tokens, section.execution.batch_size)
        write_states(self.output, language, encoded)
        return device_name()
