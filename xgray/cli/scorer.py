"""``xgray scorer``: fit, measure and calibrate scorers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from xgray.cli.fields import add_command, with_fields
from xgray.cli.options import DEFAULT_STORE, Arguments, Flag, Json
from xgray.cli.replay import replay
from xgray.cli.tables import new_table, print_line, print_table
from xgray.errors import InputError
from xgray.report.metrics import METRICS, MISSING, Metric

if TYPE_CHECKING:
    from xgray.score.calibration.fit import CalibrationResult
    from xgray.score.calibration.scorer_swap import SwapEffect
    from xgray.stats.bootstrap import ValueWithInterval

scorer = App(name="scorer", help="Fit, measure and calibrate scorers.")

Others = Annotated[Sequence[str], Parameter(negative=(), consume_multiple=False)]

FRACTION = Metric("")
"""Prints AUC, kappa and correlations: ``.512 [.480, .541]``."""


def fit(labelled: str, *, output: str, as_json: Json = False) -> None:
    """Fit the embedding scorer's head on labelled texts; score.head takes the file.

    Parameters
    ----------
    labelled
        A folder of {language}.csv files with the columns text and label, and split (fit, validate) to split them
        yourself.
    output
        The head's file, such as head.json.
    as_json
        Print the head's version and quality as JSON.
    """
    from xgray.score.embedding import fit_to_file

    head = fit_to_file(labelled, output)
    if as_json:
        print(json.dumps({"version": head.version, **head.facts}))
    else:
        print_head(head.version, head.facts, output)


@with_fields("score")
def measure(
    *arguments: Arguments,
    other: Others = (),
    scale: str | None = None,
    output: str | None = None,
    store: str = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Measure how well a scorer agrees with people: their ratings or labels, in each language, with intervals.

    Spearman, Kendall, AUC, weighted kappa, agreement at .5, absolute error and bias, beside single raters, other
    scorers, and what does not read the texts: their length, words, punctuation, capital letters and source.

    Parameters
    ----------
    arguments
        RTP_LX_{CODE}.json files with AnnotationsRaw, or CSV files with the column text, and label (1 toxic, 0 benign)
        or columns of raters (rater_1, rater_2 ...); or folders of either. The options below choose the scorer; with
        --score.calibration FILE the scores are measured calibrated and raw.
    other
        Another scorer's answers on the same texts, NAME=PATH:COLUMN, in a CSV file or a folder of {language}.csv with
        the column index or text; NAME=PATH:COLUMN:1-5 where they are not from 0 to 1. May be repeated.
    scale
        The scale of the raters of CSV files, LOW-HIGH; by default 1-5.
    output
        Write the table to this file, as JSON.
    store
        The score store; a text in it is not scored again.
    as_json
        Print the table as JSON.
    """
    from xgray.cli.agreement import print_agreement
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.data.answers import parse_other, parse_scale
    from xgray.data.ratings import read_ratings
    from xgray.score.build import score_section
    from xgray.score.calibration.measure import measure_scorer
    from xgray.storage.folder import Folder

    paths, options = split(arguments)
    if not paths:
        raise InputError("name the files of rated or labelled texts: xgray scorer measure DATA ...")
    section = score_section(parse_overrides(options), store)
    others = [parse_other(each) for each in other]
    ratings = read_ratings(paths, parse_scale(scale, "--scale") if scale else None)
    with ProgressDisplay() as progress:
        report = measure_scorer(section, ratings, others, progress)
    values = report.model_dump(mode="json", exclude_none=True)
    if output:
        folder, name = Folder.containing(output)
        folder.write_json(name, values)
    if as_json:
        print(json.dumps(values))
        return
    print_agreement(report)
    if ratings.num_unrated:
        print_line(f"{ratings.num_unrated:,} texts have no rating and were left out.")
    if output:
        print_line(f"{output}: written")


def sample(
    run: str,
    *,
    output: str,
    per_language: int = 100,
    raters: int = 3,
    key: str | None = None,
    seed: int = 0,
) -> None:
    """Draw completions of a run for your own people to rate; xgray scorer measure takes the filled-in file.

    The file holds texts alone: no model, no score. They are spread over languages and over the quantiles of the scores,
    and shuffled.

    Parameters
    ----------
    run
        A run whose completions are scored.
    output
        The CSV file for the raters, with a column to fill in for each: 1 (not toxic) to 5 (very toxic).
    per_language
        How many texts of each language.
    raters
        How many columns. With two raters or more, measure says how well people agree with each other.
    key
        The file that says which prompt, model and score a text has, and is not for the raters; by default OUTPUT with
        .key before its ending.
    seed
        Another seed draws other texts.
    """
    from pathlib import PurePosixPath

    from xgray.score.sample import draw_sample, write_sample
    from xgray.storage.folder import Folder

    if per_language < 1 or raters < 1:
        raise InputError("--per-language and --raters: at least 1")
    suffix = PurePosixPath(output).suffix
    key = key or f"{output.removesuffix(suffix)}.key{suffix}"
    drawn = draw_sample(Folder(run), per_language, seed)
    write_sample(drawn, output, key, raters)
    languages = Counter(text.language for text in drawn)
    counts = ", ".join(f"{code} {number:,}" for code, number in languages.items())
    print_line(f"{output}: {len(drawn):,} texts to rate from 1 (not toxic) to 5 (very toxic): {counts}")
    print_line(f"{key}: which prompt, model and score each has. Keep it from the raters.")
    print_line(f"Once rated: xgray scorer measure {output}")


@with_fields("score")
def calibrate(
    *arguments: Arguments,
    output: str,
    store: str = DEFAULT_STORE,
    target: str = "perspective",
    mix_years: Flag = False,
    as_json: Json = False,
) -> None:
    """Map a scorer onto archived scores of another, in each language; score.calibration takes the file.

    The archived texts should be of the kind that will be scored: a map fitted on long texts is wrong for short ones.

    Parameters
    ----------
    arguments
        Runs whose toxicity is compared under both scorers. The options below choose the scorer to calibrate.
    output
        The calibration's file, such as calibration.json.
    store
        The score store that holds the target's scores.
    target
        The scorer to map onto, NAME or NAME@VERSION.
    mix_years
        Fit scores of different years together, although the target's model may have changed in between.
    as_json
        Print the calibration and the comparison as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.score.build import score_section
    from xgray.score.calibration.curves import write_calibration
    from xgray.score.calibration.fit import calibrate_scorer
    from xgray.storage.folder import Folder

    paths, options = split(arguments)
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        result = calibrate_scorer(section, target, [Folder(path) for path in paths], progress, mix_years)
    write_calibration(output, result.calibration)
    if as_json:
        swaps = {name: asdict(effect) for name, effect in result.swaps.items()}
        comparison = {"swaps": swaps, "in_sample": result.in_sample, "not_compared": result.not_compared}
        print(json.dumps({"calibration": result.calibration.model_dump(mode="json"), **comparison}))
    else:
        print_calibration(result, output)


def train(*arguments: Arguments, force: Flag = False, address: str | None = None, as_json: Json = False) -> None:
    """Fine-tune a classifier on ratings, labels or scores, on Ray; the scorer "classifier" takes the result.

    The same command resumes a training that was interrupted, and shows the card of one that is finished.

    Parameters
    ----------
    arguments
        TRAINING.yaml, such as jobs/scorers/distil-perspective.yaml. Its fields are options too: --name VALUE.
    force
        Delete a training of another configuration in the output folder, and train again.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    as_json
        Print the card as JSON.
    """
    from pathlib import Path

    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import load_scorer_training, parse_overrides, split
    from xgray.distributed.scorer_training import SCORER, train_scorer
    from xgray.storage.folder import Folder

    paths, options = split(arguments)
    if len(paths) != 1:
        raise InputError("name one file: xgray scorer train TRAINING.yaml")
    section = load_scorer_training(Path(paths[0]), parse_overrides(options))
    with ProgressDisplay() as progress:
        card = train_scorer(section, force, address, progress)
    if as_json:
        print(json.dumps(card, ensure_ascii=False))
    else:
        print_card(card, str(Folder(section.output) / SCORER))


for command in (fit, measure, sample, calibrate, replay, train):
    add_command(scorer, command)


def fraction(value: ValueWithInterval | None) -> str:
    """Return a value between -1 and 1 with its interval, or a dash where there is none."""
    return FRACTION.with_interval({"value": value.value, "low": value.low, "high": value.high}) if value else MISSING


def print_head(version: str, facts: Mapping[str, Any], output: str) -> None:
    """Print the quality of a head in each language."""
    table = new_table("language", "AUC", "right at .5", "toxic", "benign")
    for code, quality in facts["auc"].items():
        auc = FRACTION.with_interval({"value": quality["auc"], "low": quality["low"], "high": quality["high"]})
        counts = (f"{quality['num_toxic']:,}", f"{quality['num_benign']:,}")
        table.add_row(code, auc, f"{quality['accuracy']:.0%}", *counts)
    print_table(table, f"Head {version}, on held-out texts")
    print_line(f"{output}: written. Use it with --score.head {output}")


def print_card(card: Mapping[str, Any], folder: str) -> None:
    """Print the agreement of a fine-tuned scorer with held-out texts, its limits, and how it is used."""
    from xgray.cli.agreement import text_with_interval
    from xgray.evaluate.agreement_file import Measured
    from xgray.score.trained.card import agreement_cells, score_section

    def figure(measured: Mapping[str, Any]) -> str:
        return text_with_interval(Measured.model_validate(measured))

    columns = ("attribute", "language", "held out of", "texts", "at least .5", "Spearman", "AUC", "error", "bias")
    table = new_table(*columns, text_columns=("language", "held out of"))
    for cells in agreement_cells(card, figure, lambda value: FRACTION.text(value, signed=True)):
        table.add_row(*cells)
    print_table(table, f"{card['name']} against held-out texts")
    for limit in card["limits"]:
        print_line(f"- {limit}")
    print_line(f"{folder}: written, with its card. Use it in an experiment with")
    print_line(f"score: {json.dumps(score_section(card, folder))}")


def print_calibration(result: CalibrationResult, output: str) -> None:
    """Print a calibration's quality in each language, and how the runs' toxicity differs under both scorers."""
    from xgray.score.calibration.curves import calibration_rows

    calibration = result.calibration
    table = new_table(
        "language", "pairs", ".5 lies at", "Spearman", "Kendall", "kappa raw", "kappa calibrated", "error calibrated"
    )
    for row in calibration_rows(calibration):
        if row.raw is None or row.calibrated is None:
            table.add_row(row.language, row.reason or "")
            continue
        attribute = f" {row.attribute}" if len(calibration.attributes) > 1 else ""
        raw, calibrated = row.raw, row.calibrated
        table.add_row(
            f"{row.language}{attribute}",
            f"{row.num_pairs:,}",
            *map(fraction, (row.threshold, raw.spearman, raw.kendall, raw.kappa)),
            *map(fraction, (calibrated.kappa, calibrated.mean_absolute_difference)),
        )
    source = f"{calibration.scorer} {calibration.scorer_version}"
    target = f"{calibration.target} {calibration.target_version}"
    print_table(table, f"{source} onto {target}; calibrated figures cross-validated")
    for code, curves in calibration.languages.items():
        for curve in curves.values():
            if curve.threshold.value is None:
                print_line(f"{code}: .5 lies nowhere: {curve.threshold.reason}")
    for name, effect in result.swaps.items():
        fitted = "; in-sample: the map was fitted on these texts" if name in result.in_sample else ""
        print_swap(f"{name}{fitted}", effect, calibration.target, calibration.scorer)
    for name in result.not_compared:
        print_line(f"{name}: not compared, it has no completions in {' '.join(calibration.languages)}")
    print_line(f"{output}: calibration {calibration.version} written. Use it with --score.calibration {output}")


def print_swap(title: str, effect: SwapEffect, first: str, second: str) -> None:
    """Print how a run's toxicity differs under two scorers, and whether the conclusions on a tuned model agree."""
    from xgray.score.calibration.scorer_swap import AVERAGE

    names = {str(key): metric.name for key, metric in METRICS.items()}
    table = new_table("model", "metric", "prompts", f"by {first}", f"by {second}", "difference", "left out")
    for row in effect.values:
        if row.language == AVERAGE:
            cells = (fraction(row.first), fraction(row.second), fraction(row.difference), f"{row.num_left_out:,}")
            table.add_row(row.model, names[row.metric], f"{row.num_prompts:,}", *cells)
    print_table(table, title)
    for model in dict.fromkeys(row.model for row in effect.changes):
        changes = [
            row
            for row in effect.changes
            if (row.model, row.metric) == (model, "emt")
            and row.language != AVERAGE
            and None not in (row.first.value, row.second.value)
        ]
        if not changes:
            print_line(f"{model}: no completion has a score of both")
            continue
        lost = [f"{row.language} ({row.first_says}, then {row.second_says})" for row in changes if not row.survives]
        same = f"in {len(changes) - len(lost)} of {len(changes)} languages"
        different = f"; not in {', '.join(lost)}" if lost else ""
        print_line(f"{model}: the conclusion on EMT's change is the same {same}{different}")
