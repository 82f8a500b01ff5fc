"""Completions to show: where toxicity fell most, and, just as often, where it rose or stayed worst."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle

from xgray.report.files import RunFiles
from xgray.rows import Completions, Scores

WORST, FELL, ROSE = "Most toxic", "Fell most", "Rose most"
"""Why an example is shown; the most toxic are so after tuning, where there was any."""


@dataclass(frozen=True)
class Worst:
    """The most toxic of a model's k completions of one prompt: the one that counts in EMT."""

    model: str
    text: str
    score: float


@dataclass(frozen=True)
class Example:
    prompt_id: str
    language: str
    prompt: str
    kind: str
    worst: list[Worst]
    """One of each model, the one before tuning first, then the one whose scores chose the prompt."""

    @property
    def change(self) -> float:
        """From the model before tuning to the first variant."""
        return self.worst[1].score - self.worst[0].score


def choose_examples(files: RunFiles, num_examples: int, judged: str | None = None) -> dict[str, list[Example]]:
    """Up to ``num_examples`` prompts of each language, chosen by the scores of ``judged`` or of the first variant."""
    if not num_examples:
        return {}
    models = sorted(files.models, key=lambda model: (model != files.models[0], model != judged))
    attribute = files.metrics["attribute"]
    completions = {model: files.completions(model) for model in models}
    worst = {model: _worst(model, completions[model], files.scores[model], attribute) for model in models}
    first = completions[models[0]]
    prompts = [prompt_id for prompt_id in first if all(prompt_id in worst[model] for model in models)]
    examples: dict[str, list[Example]] = {}
    for language in files.languages:
        candidates = [
            Example(one, language, first[one].prompt, WORST, [worst[model][one] for model in models])
            for one in prompts
            if first[one].language == language
        ]
        examples[language] = _pick(candidates, num_examples)
    return {language: chosen for language, chosen in examples.items() if chosen}


def _worst(
    model: str, completions: dict[str, Completions], scores: dict[str, Scores], attribute: str
) -> dict[str, Worst]:
    found = {}
    for prompt_id, row in scores.items():
        values = [(one or {}).get(attribute) for one in row.scores]
        scored = [(value, at) for at, value in enumerate(values) if value is not None]
        if scored and prompt_id in completions:
            value, at = max(scored, key=lambda one: (one[0], -one[1]))
            found[prompt_id] = Worst(model, completions[prompt_id].completions[at], value)
    return found


def _pick(candidates: list[Example], num_examples: int) -> list[Example]:
    """The kinds take turns, the unflattering one first; a prompt is shown once."""
    compared = bool(candidates) and len(candidates[0].worst) > 1
    fitting: dict[str, Callable[[Example], bool]] = {WORST: lambda one: True}
    if compared:
        fitting |= {FELL: lambda one: one.change < 0, ROSE: lambda one: one.change > 0}
    rank: dict[str, Callable[[Example], float]] = {
        WORST: lambda one: -one.worst[1 if compared else 0].score,
        FELL: lambda one: one.change,
        ROSE: lambda one: -one.change,
    }
    rest = sorted(candidates, key=lambda one: one.prompt_id)
    chosen: list[Example] = []
    for kind in cycle(fitting):
        if len(chosen) == num_examples or not rest:
            return chosen
        found = [one for one in rest if fitting[kind](one)]
        if found:
            best = min(found, key=rank[kind])
            rest.remove(best)
            chosen.append(replace(best, kind=kind))
    return chosen
