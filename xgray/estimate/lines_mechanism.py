"""The lines of an estimate for the stages that look inside the network, as far as known rates allow.

An intervention is sampled, scored and evaluated as any model is, at the same rates. Texts that the base model only
reads go at the rate of fluency, where fluency is measured with the base model. Greedy tokens with their activations go
at the engine's rate only where the engine is transformers. Every other stage is listed as not estimated, so that
nothing goes missing from the total unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xgray.config import Experiment, Generate
from xgray.estimate.lines import (
    Line,
    engine_gpus,
    fluency_line,
    generate_line,
    metrics_line,
    num_engines,
    overlap,
    score_line,
)
from xgray.estimate.rates import Rates
from xgray.estimate.work import GreedyWork, InterventionWork, ReadingWork, UnratedWork, Work


def inside_lines(experiment: Experiment, work: Work, rates: Rates) -> tuple[list[Line], float]:
    """Return the lines in the order of the stages, and the seconds by which sampling and scoring of settings overlap.

    Raises:
        InputError: an intervention is left, and a rate of sampling, scoring or evaluating is missing.
    """
    lines: list[Line] = []
    saved = 0.0
    for stage in work.inside:
        if isinstance(stage, ReadingWork):
            lines.append(_reading(experiment, stage, work.prompt_characters, rates))
        elif isinstance(stage, GreedyWork):
            lines.append(_continuing(experiment, stage, rates))
        elif isinstance(stage, UnratedWork):
            left = 0 if stage.is_done else stage.number
            lines.append(Line(stage.stage, stage.unit, stage.number - left, left, None if left else 0.0))
        else:
            settings, overlapped = _intervening(experiment, stage, rates)
            lines += settings
            saved += overlapped
    return lines, saved


def _reading(experiment: Experiment, stage: ReadingWork, prompt_characters: float, rates: Rates) -> Line:
    if stage.is_done:
        return Line(stage.stage, "texts", stage.num_texts, 0, 0.0)
    unknown = Line(stage.stage, "texts", 0, stage.num_texts, None)
    fluency, measured = rates.fluency, experiment.evaluate.fluency
    if rates.generate is None or rates.generate.prompt_tokens is None or not prompt_characters:
        return unknown
    tokens = round(stage.num_characters * rates.generate.prompt_tokens / prompt_characters)
    if fluency is None or measured.kind != "causal" or measured.model is not None:
        return replace(unknown, prompt_tokens=tokens)
    seconds = fluency.start_seconds + tokens / fluency.tokens_per_second / (rates.num_gpus or rates.num_nodes)
    # The rate of fluency counts the tokens of completions, while their prompts are read as well.
    source = (
        f"an upper bound: the rate of fluency ({fluency.source}); tokens estimated from characters, as in the prompts"
    )
    return replace(
        unknown, prompt_tokens=tokens, seconds=seconds, gpu_hours=rates.num_gpus * seconds / 3600, source=source
    )


def _continuing(experiment: Experiment, stage: GreedyWork, rates: Rates) -> Line:
    left = stage.num_prompts - stage.num_done
    if not left:
        return Line(stage.stage, "prompts", stage.num_prompts, 0, 0.0)
    tokens, engine = left * stage.new_tokens, rates.generate
    prompt_tokens = None if engine is None or engine.prompt_tokens is None else round(left * engine.prompt_tokens)
    line = Line(
        stage.stage, "prompts", stage.num_done, left, None, num_completions=left, prompt_tokens=prompt_tokens,
        new_tokens=tokens,
    )  # fmt: skip
    if engine is None or experiment.generate.execution.engine != "transformers":
        return line
    seconds = engine.start_seconds + tokens / engine.tokens_per_second / (rates.num_gpus or rates.num_nodes)
    return replace(line, seconds=seconds, gpu_hours=rates.num_gpus * seconds / 3600, source=engine.source)


def _intervening(experiment: Experiment, stage: InterventionWork, rates: Rates) -> tuple[list[Line], float]:
    section = experiment.intervene
    assert section is not None
    generate = Generate(**section.generate.model_dump(), execution=experiment.generate.execution)
    inner = experiment.model_copy(update={"generate": generate})
    work = Work(stage.num_prompts, {}, stage.settings, is_evaluated=stage.is_done)
    # The mean length of sampled completions says nothing about greedy ones.
    known = rates.generate and rates.generate.model_copy(update={"new_tokens": None})
    upper = rates.model_copy(update={"generate": known})
    generating = [generate_line(inner, name, work, upper) for name in stage.settings]
    scoring = [score_line(inner, name, work, upper) for name in stage.settings]
    sampled, scored = _joint_line("intervene: generate", generating), _joint_line("intervene: score", scoring)
    lines = [
        sampled,
        scored,
        replace(fluency_line(inner, work, upper), stage="intervene: fluency"),
        replace(metrics_line(work, upper), stage="intervene: metrics"),
    ]
    if sampled.num_left and known:
        seconds = known.start_seconds  # one engine samples all settings
        hours = engine_gpus(inner, work, rates) * seconds / 3600
        engines = num_engines(inner, work, rates)
        lines.insert(0, Line("intervene: start", "engines", 0, engines, seconds, gpu_hours=hours, source=known.source))
    overlapped = min(sampled.seconds or 0.0, scored.seconds or 0.0) if overlap(inner, work, rates) else 0.0
    return lines, overlapped


def _joint_line(stage: str, lines: Sequence[Line]) -> Line:
    """Return line line for all settings."""
    tokens = [line.prompt_tokens for line in lines if line.num_left]
    return Line(
        stage,
        lines[0].unit,
        sum(line.num_done for line in lines),
        sum(line.num_left for line in lines),
        sum(line.seconds or 0.0 for line in lines),
        num_completions=sum(line.num_completions for line in lines),
        prompt_tokens=None if not tokens or None in tokens else sum(line or 0 for line in tokens),
        new_tokens=sum(line.new_tokens for line in lines),
        num_requests=sum(line.num_requests for line in lines),
        gpu_hours=sum(line.gpu_hours for line in lines),
        source=next((line.source for line in lines if line.source), ""),
    )
