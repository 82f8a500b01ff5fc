"""Chooses the completions that the report shows.

In turn: the prompt whose completion is most toxic after tuning, the one whose toxicity fell most, and the one where it
rose most, so that failures are shown as often as successes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from xgray.report.files import RunFiles
from xgray.rows import Completions, Scores

WORST, FELL, ROSE = "Most toxic", "Fell most", "Rose most"
"""Why an example was chosen. "Most toxic" is judged after tuning, where a tuned model was evaluated."""


@dataclass(frozen=True)
class WorstCompletion:
    """The most toxic of a model's k completions of a prompt: the one that counts in EMT."""

    model: str
    text: str
    score: float


@dataclass(frozen=True)
class Example:
    """A prompt with every model's most toxic completion."""

    prompt_id: str
    language: str
    prompt: str
    kind: str
    worst: list[WorstCompletion]
    """One of each model: the base model's first, then that of the model by whose scores the prompt was chosen."""

    @property
    def change(self) -> float:
        """The change of the score from the base model to the model by whose scores the prompt was chosen."""
        return self.worst[1].score - self.worst[0].score


def choose_examples(
    files: RunFiles, num_examples: int, judged: str | None = None, models: Sequence[str] | None = None
) -> dict[str, list[Example]]:
    """Choose up to ``num_examples`` prompts of each language that every model has a scored completion of.

    Args:
        models: the base model first; by default all.
        judged: the model by whose scores prompts are chosen; by default the first variant.
    """
    if not num_examples:
        return {}
    shown = files.models if models is None else models
    models = sorted(shown, key=lambda model: (model != shown[0], model != judged))
    attribute = files.metrics["attribute"]
    completions = {model: files.completions(model) for model in models}
    worst = {model: _worst_completions(model, completions[model], files.scores[model], attribute) for model in models}
    base = completions[models[0]]
    prompt_ids = [prompt_id for prompt_id in base if all(prompt_id in worst[model] for model in models)]
    examples: dict[str, list[Example]] = {}
    for language in files.languages:
        candidates = [
            Example(prompt_id, language, base[prompt_id].prompt, WORST, [worst[model][prompt_id] for model in models])
            for prompt_id in prompt_ids
            if base[prompt_id].language == language
        ]
        examples[language] = _pick(candidates, num_examples)
    return {language: chosen for language, chosen in examples.items() if chosen}


def _worst_completions(
    model: str, completions: dict[str, Completions], scores: dict[str, Scores], attribute: str
) -> dict[str, WorstCompletion]:
    """Return the completion of highest score of each prompt that has a score; of equal ones the first."""
    worst = {}
    for prompt_id, row in scores.items():
        values = [(score or {}).get(attribute) for score in row.scores]
        scored = [(value, index) for index, value in enumerate(values) if value is not None]
        if scored and prompt_id in completions:
            value, index = max(scored, key=lambda pair: pair[0])
            worst[prompt_id] = WorstCompletion(model, completions[prompt_id].completions[index], value)
    return worst


def _pick(candidates: list[Example], num_examples: int) -> list[Example]:
    """Choose by the three kinds in turn, each prompt once; ties go to the first prompt id."""
    is_compared = bool(candidates) and len(candidates[0].worst) > 1
    fits: dict[str, Callable[[Example], bool]] = {WORST: lambda example: True}
    if is_compared:
        fits |= {FELL: lambda example: example.change < 0, ROSE: lambda example: example.change > 0}
    rank: dict[str, Callable[[Example], float]] = {
        WORST: lambda example: -example.worst[1 if is_compared else 0].score,
        FELL: lambda example: example.change,
        ROSE: lambda example: -example.change,
    }
    remaining = sorted(candidates, key=lambda example: example.prompt_id)
    chosen: list[Example] = []
    for kind in cycle(fits):
        if len(chosen) == num_examples or not remaining:
            return chosen
        fitting = [example for example in remaining if fits[kind](example)]
        if fitting:
            best = min(fitting, key=rank[kind])
            remaining.remove(best)
            chosen.append(replace(best, kind=kind))
    return chosen
