"""What the stages that look inside the network take, as far as rates that are known say it.

An intervention is sampled, scored and evaluated as any model's completions are, and has their rates. A text that the
base model only reads goes at the pace of fluency, where that is measured with the base model. Greedy tokens with their
activations go at the engine's pace only where the engine is transformers. Anything else is not estimated, and says so:
none of it may go missing from a total in silence.
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
from xgray.estimate.work import Continuing, Intervening, Other, Reading, Work


def mechanism_lines(experiment: Experiment, work: Work, rates: Rates) -> tuple[list[Line], float]:
    """The lines, in the order of the stages, and the seconds by which an intervention's sampling and scoring overlap.

    Raises:
        InputError: an intervention is left, and a rate of sampling, scoring or evaluating is missing.
    """
    lines: list[Line] = []
    saved = 0.0
    for one in work.mechanism:
        if isinstance(one, Reading):
            lines.append(_reading(experiment, one, work.prompt_characters, rates))
        elif isinstance(one, Continuing):
            lines.append(_continuing(experiment, one, rates))
        elif isinstance(one, Other):
            left = 0 if one.done else one.number
            lines.append(Line(one.stage, one.unit, one.number - left, left, None if left else 0.0))
        else:
            own, overlapped = _intervening(experiment, one, rates)
            lines += own
            saved += overlapped
    return lines, saved


def _reading(experiment: Experiment, one: Reading, prompt_characters: float, rates: Rates) -> Line:
    if one.done:
        return Line(one.stage, "texts", one.num_texts, 0, 0.0)
    unknown = Line(one.stage, "texts", 0, one.num_texts, None)
    fluency, measured = rates.fluency, experiment.evaluate.fluency
    if rates.generate is None or rates.generate.prompt_tokens is None or not prompt_characters:
        return unknown
    tokens = round(one.num_characters * rates.generate.prompt_tokens / prompt_characters)
    if fluency is None or measured.kind != "causal" or measured.model is not None:
        return replace(unknown, prompt_tokens=tokens)
    seconds = fluency.start_seconds + tokens / fluency.tokens_per_second / (rates.num_gpus or rates.num_nodes)
    # Fluency counts the tokens of completions alone, and reads their prompts as well.
    source = f"an upper bound: fluency's pace ({fluency.source}); tokens reckoned from characters as in the prompts"
    return replace(
        unknown, prompt_tokens=tokens, seconds=seconds, gpu_hours=rates.num_gpus * seconds / 3600, source=source
    )


def _continuing(experiment: Experiment, one: Continuing, rates: Rates) -> Line:
    left = one.num_prompts - one.num_done
    if not left:
        return Line(one.stage, "prompts", one.num_prompts, 0, 0.0)
    tokens, own = left * one.new_tokens, rates.generate
    prompt_tokens = None if own is None or own.prompt_tokens is None else round(left * own.prompt_tokens)
    line = Line(
        one.stage, "prompts", one.num_done, left, None, num_completions=left, prompt_tokens=prompt_tokens,
        new_tokens=tokens,
    )  # fmt: skip
    if own is None or experiment.generate.execution.engine != "transformers":
        return line
    seconds = own.start_seconds + tokens / own.tokens_per_second / (rates.num_gpus or rates.num_nodes)
    return replace(line, seconds=seconds, gpu_hours=rates.num_gpus * seconds / 3600, source=own.source)


def _intervening(experiment: Experiment, one: Intervening, rates: Rates) -> tuple[list[Line], float]:
    section = experiment.intervene
    assert section is not None
    generate = Generate(**section.generate.model_dump(), execution=experiment.generate.execution)
    inner = experiment.model_copy(update={"generate": generate})
    work = Work(one.num_prompts, {}, one.settings, evaluated=one.done)
    # What a greedy completion comes to, sampled ones do not say.
    known = rates.generate and rates.generate.model_copy(update={"new_tokens": None})
    upper = rates.model_copy(update={"generate": known})
    generating = [generate_line(inner, name, work, upper) for name in one.settings]
    scoring = [score_line(inner, name, work, upper) for name in one.settings]
    sampled, scored = _together("intervene: generate", generating), _together("intervene: score", scoring)
    lines = [
        sampled,
        scored,
        replace(fluency_line(inner, work, upper), stage="intervene: fluency"),
        replace(metrics_line(work, upper), stage="intervene: metrics"),
    ]
    if sampled.num_left and known:
        seconds = known.start_seconds  # one engine takes all settings
        hours = engine_gpus(inner, work, rates) * seconds / 3600
        engines = num_engines(inner, work, rates)
        lines.insert(0, Line("intervene: start", "engines", 0, engines, seconds, gpu_hours=hours, source=known.source))
    overlapped = min(sampled.seconds or 0.0, scored.seconds or 0.0) if overlap(inner, rates) else 0.0
    return lines, overlapped


def _together(stage: str, lines: Sequence[Line]) -> Line:
    """One line for all settings."""
    tokens = [one.prompt_tokens for one in lines if one.num_left]
    return Line(
        stage,
        lines[0].unit,
        sum(one.num_done for one in lines),
        sum(one.num_left for one in lines),
        sum(one.seconds or 0.0 for one in lines),
        num_completions=sum(one.num_completions for one in lines),
        prompt_tokens=None if not tokens or None in tokens else sum(one or 0 for one in tokens),
        new_tokens=sum(one.new_tokens for one in lines),
        num_requests=sum(one.num_requests for one in lines),
        gpu_hours=sum(one.gpu_hours for one in lines),
        source=next((one.source for one in lines if one.source), ""),
    )
