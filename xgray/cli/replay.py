"""``xgray scorer replay``: what changes for a client of Perspective that is answered by another scorer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xgray.cli.agreement import FRACTION, text_with_interval
from xgray.cli.fields import with_fields
from xgray.cli.options import Arguments, Json
from xgray.cli.scores import FileOptions
from xgray.cli.serve import split_scorers
from xgray.cli.tables import new_table, print_line, print_table
from xgray.errors import InputError
from xgray.report.metrics import percent

if TYPE_CHECKING:
    from xgray.evaluate.agreement_file import Measured
    from xgray.score.calibration.replay import Difference, ReplayReport, VersionReport

NO_OPTIONS = FileOptions()
COLUMNS = {
    "Spearman": "spearman",
    "difference": "difference",
    "absolute difference": "absolute_difference",
    "same side of .5": "same_side",
    ".5 here alone": "here_alone",
    ".5 there alone": "there_alone",
}
"""The measures of the table, by their titles."""


@with_fields("score")
def replay(
    *arguments: Arguments,
    file_options: FileOptions = NO_OPTIONS,
    most: int | None = None,
    seed: int = 0,
    as_json: Json = False,
) -> int:
    """Score archived requests with the scorers that you would serve; tell how the answers differ from Perspective's.

    By attribute and language, with 95 % intervals: rank correlation, mean of the scorer's score minus Perspective's,
    mean absolute difference, how many texts are on the same side of .5, and how many either puts at .5 or above alone;
    and how many requests xgray serve would refuse. Answers of different years are kept apart. Nothing is written.

    Parameters
    ----------
    arguments
        Files of answers of Perspective, or folders of them, in any form that xgray scores import reads, such as a log
        of {"request": ..., "response": ...} lines. The options below choose the scorer; several are compared with
        --score given several times.
    most
        Replay at most so many texts of each language and version, drawn at random.
    seed
        Another seed draws other texts.
    as_json
        Print the figures as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.score.calibration.replay import read_archive
    from xgray.score.calibration.replay import replay as replay_archive
    from xgray.score.served import named_scorers

    paths, options = split(arguments)
    if not paths:
        raise InputError("name the files of Perspective's answers: xgray scorer replay FILE ...")
    if most is not None and most < 1:
        raise InputError(f"--most: {most} is no number of texts; at least 1")
    names, rest = split_scorers(options)
    values = parse_overrides(rest)
    if others := [name for name in values if name != "score"]:
        raise InputError(f"--{others[0]}: only fields of the score section are taken here: --score.FIELD VALUE")
    sections = named_scorers(names, values.get("score", {}))
    with ProgressDisplay() as progress:
        archive = read_archive(paths, file_options.archive_options(), most, seed, progress)
        reports = {name: replay_archive(archive, section, progress) for name, section in sections.items()}
    if as_json:
        scorers = {name: report.model_dump(mode="json", exclude_none=True) for name, report in reports.items()}
        print(json.dumps({"scorers": scorers, "left_out": dict(archive.left_out)}))
    else:
        for name, report in reports.items():
            print_replay(name, report)
        for reason, number in archive.left_out.most_common():
            print_line(f"Left out: {number:,}  {reason}")
    return int(not all(report.is_answered for report in reports.values()))


def print_replay(name: str, report: ReplayReport) -> None:
    """Print how a scorer's answers differ from those of each version of Perspective."""
    for version, replayed in report.versions.items():
        title = f"{name} ({report.scorer} {report.scorer_version}) against perspective@{version}"
        if replayed.differences:
            _print_differences(title, replayed.differences)
        else:
            print_line(f"{title}: nothing to compare")
        print_line(_refusals(replayed))
    if not report.is_answered:
        print_line(f"{name} has no score of most texts, so that nothing follows from this.")


def _print_differences(title: str, differences: Mapping[str, Mapping[str, Difference]]) -> None:
    has_missing = any(cell.num_missing for table in differences.values() for cell in table.values())
    more = ["without score"] if has_missing else []
    out = new_table("attribute", "language", "texts", *COLUMNS, *more, text_columns=("language",))
    for attribute, table in differences.items():
        for code, cell in table.items():
            missing = [f"{cell.num_missing:,}"] if has_missing else []
            figures = {column: getattr(cell, column) for column in COLUMNS.values()}
            cells = [
                _signed(each) if column == "difference" else text_with_interval(each)
                for column, each in figures.items()
            ]
            out.add_row(attribute, code, f"{cell.num:,}", *cells, *missing)
    print_table(out, title)


def _signed(measured: Measured) -> str:
    """Return ``+.12 [+.10, +.14]``."""
    if measured.value is None or measured.low is None or measured.high is None:
        return text_with_interval(measured)
    value, low, high = (FRACTION.text(each, signed=True) for each in (measured.value, measured.low, measured.high))
    return f"{value} [{low}, {high}]"


def _refusals(replayed: VersionReport) -> str:
    """Return in one line what a service would refuse of the requests."""
    total = replayed.num_requests
    if not replayed.num_refused:
        return f"Refused: none of {total:,} requests."
    counts = replayed.refused_languages | {name.upper(): number for name, number in replayed.refused_attributes.items()}
    reasons = ", ".join(f"{name} {number:,}" for name, number in counts.items())
    partial = replayed.num_refused_partial
    return (
        f"Refused: {replayed.num_refused:,} of {total:,} requests ({percent(replayed.num_refused / total)}), for what "
        f"is not served: {reasons}. With --serve.partial-answers true: {partial:,} ({percent(partial / total)})."
    )
