"""``xgray scores``: the score store."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from xgray.cli.fields import add_command, with_fields
from xgray.cli.options import DEFAULT_STORE, Arguments, Flag, Json
from xgray.cli.tables import new_table, print_line, print_table
from xgray.errors import InputError, StageError
from xgray.runs.progress import duration

if TYPE_CHECKING:
    from xgray.config import Score
    from xgray.data.archives.archived import ArchiveOptions
    from xgray.runs.progress import OnProgress
    from xgray.score.archive import ArchivePlan
    from xgray.score.scorer import Scorer
    from xgray.score.store.forms import Form
    from xgray.score.store.store import ScoreStore

Names = Annotated[list[str] | None, Parameter(negative=())]

scores = App(name="scores", help="The score store: all scores that any run has asked for.")


@Parameter("*")
@dataclass(frozen=True)
class FileOptions:
    """What a file of scores does not say itself.

    Parameters
    ----------
    language
        The language of the texts; of a table with several columns of texts, once for each.
    scored
        When the texts were scored: a year, a date, or "unknown". Scores of different years are kept apart.
    form
        The file's form, where it is not recognised: export, polyglo, rtp, paper, answers, jigsaw or table.
    texts
        The file of the texts that answers belong to, a line for each.
    text_column
        The column of texts in a table.
    score_column
        The column of scores, or ATTRIBUTE=COLUMN. With several columns of texts, one for each, in their order.
    language_column
        The column of languages in a table.
    """

    language: Names = None
    scored: str | None = None
    form: str | None = None
    texts: Path | None = None
    text_column: Names = None
    score_column: Names = None
    language_column: str | None = None

    def archive_options(self) -> ArchiveOptions:
        """Return the options as the readers take them."""
        from xgray.data.archives.archived import ArchiveOptions

        return ArchiveOptions(
            languages=tuple(self.language or ()),
            form=self.form,
            scored=self.scored,
            texts=self.texts,
            text_columns=tuple(self.text_column or ()),
            score_columns=tuple(self.score_column or ()),
            language_column=self.language_column,
        )


@scores.command(name="import")
def import_scores(
    *files: str, file_options: FileOptions = FileOptions(), store: str = DEFAULT_STORE, as_json: Json = False
) -> None:
    """Import archived scores of any form into the store; a file's form is recognised by its first row.

    Read are PolygloToxicityPrompts and RealToxicityPrompts, answers of the Perspective API with their texts, Google's
    sample and other tables (CSV, Parquet, JSON lines), the paper's perspective_api_eval-*.json, Jigsaw's CSV files and
    exports of a store.

    Parameters
    ----------
    files
        Files or folders of them.
    store
        The score store's folder or URI.
    as_json
        Print the counts as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.score.store.forms import find_files
    from xgray.score.store.store import ScoreStore

    if not files:
        raise InputError("name the files to import: xgray scores import FILE ...")
    options = file_options.archive_options()
    found = {path: find_files(path, options) for path in files}
    target, counts = ScoreStore(store), dict.fromkeys(files, 0)
    for path, in_path in found.items():
        for file, form in in_path:
            with ProgressDisplay() as progress:
                versions = _import_file(file, form, options, target, progress)
            counts[path] += versions.total()
            if not as_json:
                kept = "; ".join(f"{number:,} of {version}" for version, number in sorted(versions.items()))
                print_line(f"{file}: {versions.total():,} scores into {target.folder} ({form.description}; {kept})")
    if as_json:
        print(json.dumps({"store": target.folder.uri, "files": counts}))


def _import_file(
    file: Path, form: Form, options: ArchiveOptions, target: ScoreStore, progress: OnProgress
) -> Counter[str]:
    """Put the scores of a file into a store and count them by version.

    Raises:
        StageError: the file holds no score.
    """
    from xgray.score.store.forms import read_file

    versions: Counter[str] = Counter()
    before = options.left_out.copy()

    def counted() -> Iterator[bytes]:
        for number, (version, row) in enumerate(read_file(file, form, options), start=1):
            versions[version] += 1
            if number % 10_000 == 0:
                progress(f"import {file.name}", number, 0)
            yield row

    target.put_rows(counted())
    if not versions:
        reasons = "; ".join(f"{number} left out: {reason}" for reason, number in (options.left_out - before).items())
        raise StageError(f"{file}: 0 scores read ({form.description}): {reasons or 'it has no rows'}")
    return versions


@scores.command(name="export")
def export_scores(file: str, *, store: str = DEFAULT_STORE, without_text: Flag = False, run: str | None = None) -> None:
    """Write the store as one Parquet file, or a run's scores as the paper's perspective_api_eval-*.json files.

    Parameters
    ----------
    file
        The Parquet file, local or behind a URI; with --run the local folder for the JSON files.
    store
        The score store's folder or URI.
    without_text
        Write hashes instead of texts, to pass on where the texts may not be. Whoever has a text finds its score.
    run
        A run whose completions are written with their Perspective scores from the store.
    """
    from xgray.score.store.import_export import write_parquet
    from xgray.score.store.store import ScoreStore

    if run is None:
        number = write_parquet(ScoreStore.open_existing(store).whole_entries(), file, with_text=not without_text)
        print_line(f"{file}: {number:,} scores{', without their texts' if without_text else ''}")
        return
    from xgray.score.archive import export_run
    from xgray.storage.folder import Folder

    if "://" in file:
        raise InputError(f"{file}: --run writes a folder of files on this machine; name a local one")
    for written in export_run(Folder(run), store, Path(file)):
        print_line(str(written))


@Parameter("*")
@dataclass(frozen=True)
class TextOptions:
    """Files of texts, and which of them come first.

    Parameters
    ----------
    text_column
        The column of texts in a file; by default text, comment_text or comment.
    language_column
        The column of languages in a file; by default language or lang.
    language
        The language of the texts of all files, in place of a column.
    first
        A language that is archived before the others; may be given several times.
    """

    text_column: str | None = None
    language_column: str | None = None
    language: str | None = None
    first: Names = None


@with_fields("score")
def archive(
    *arguments: Arguments,
    text_options: TextOptions = TextOptions(),
    store: str | None = None,
    estimate: Flag = False,
    address: str | None = None,
    as_json: Json = False,
) -> None:
    """Score runs' completions, or any texts, with Perspective before it closes; texts with a score are passed over.

    One request returns all attributes. The languages in which the least is archived come first; in each language the
    order is drawn at random, so that what is done when the time is up is a random sample. The same command resumes.

    Parameters
    ----------
    arguments
        Run directories, or files of texts: CSV, JSON lines or Parquet with columns of texts and languages, or .txt
        with a text in each line. The options below are fields of the score section:
        --score.execution.requests-per-second 50.
    store
        The score store; by default the one beside the first run, or runs/scores for a file.
    estimate
        Say what it would take; send no request.
    address
        The Ray cluster whose other runs use the same key, and share its rate limit.
    as_json
        Print the result as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.data.texts import TextColumns
    from xgray.rows import PAPER_ATTRIBUTES
    from xgray.score.archive import is_text_file, plan_archive, run_archive
    from xgray.score.build import score_section
    from xgray.score.store.location import run_store_uri
    from xgray.storage.folder import Folder

    paths, options = split(arguments)
    if not paths:
        raise InputError("name runs or files of texts to archive: xgray scores archive runs/NAME ...")
    if store is None:
        store = DEFAULT_STORE if is_text_file(paths[0]) else run_store_uri(Folder(paths[0]))
    section = score_section(parse_overrides(options), store, scorer="perspective", attributes=list(PAPER_ATTRIBUTES))
    columns = TextColumns(text_options.text_column, text_options.language_column, text_options.language)
    plan = plan_archive(paths, section, columns, text_options.first or ())
    missing = None
    if not estimate:
        if not as_json:
            print_estimate(plan)
        with _archive_scorer(section, address) as scorer, ProgressDisplay() as progress:
            missing = run_archive(plan, scorer, progress)
    if as_json:
        result = {"store": section.execution.store, "num_known": plan.num_known, **asdict(plan.estimate)}
        print(json.dumps(result if missing is None else result | {"missing": missing}))
    elif missing is None:
        print_estimate(plan)
    else:
        print_archive(plan, missing)


add_command(scores, archive)


@contextmanager
def _archive_scorer(section: Score, address: str | None) -> Iterator[Scorer]:
    """Yield the scorer, which on a cluster (``address`` or ``RAY_ADDRESS``) shares its key's rate limit."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        from xgray.score.build import build_scorer

        yield build_scorer(section)
        return
    from xgray.distributed.cluster import connect
    from xgray.distributed.rate_limit import shared_scorer

    with connect(address):
        yield shared_scorer(section)


@scores.command
def check(*, store: str = DEFAULT_STORE, salvage: Flag = False) -> None:
    """Read the whole store and name its damaged files.

    Parameters
    ----------
    store
        The score store's folder or URI.
    salvage
        Replace damaged files by the rows that can be read from them.
    """
    from xgray.score.store.store import ScoreStore

    target = ScoreStore.open_existing(store)
    damaged = target.check()
    salvaged = target.salvage(damaged) if salvage else {}
    for name in damaged:
        print_line(
            f"{target.folder / 'segments' / name} is damaged{_salvaged(target, *salvaged[name]) if salvage else ''}"
        )
    if damaged and not salvage:
        raise StageError(
            f"{len(damaged)} damaged files: --salvage keeps their readable rows; the other texts are scored again"
        )
    print_line(f"{target.folder}: {target.num_rows:,} scores")


def _salvaged(store: ScoreStore, num_kept: int, is_whole: bool) -> str:
    """Return what was kept of a damaged file, for the line that names it."""
    if is_whole:
        return f"; all of its {num_kept:,} rows were kept"
    return f"; {num_kept:,} rows were kept, and the file as it is in {store.folder / 'damaged'}"


@scores.command
def merge(*others: str, store: str = DEFAULT_STORE) -> None:
    """Add all scores of other stores to a store; the order does not matter.

    Parameters
    ----------
    others
        The stores to read.
    store
        The store to add to.
    """
    from xgray.score.store.store import ScoreStore

    if not others:
        raise InputError("name the stores to merge: xgray scores merge OTHER ... --store STORE")
    sources = [ScoreStore.open_existing(other) for other in others]
    target = ScoreStore(store)
    for source in sources:
        target.merge(source)
    target.compact()
    print_line(f"{target.folder}: {target.num_rows:,} scores")


def print_estimate(plan: ArchivePlan) -> None:
    """Print what is left to archive, and whether there is time for it."""
    from xgray.score.archive import CLOSES, LAST_DAY

    estimate, rate = plan.estimate, plan.section.execution.requests_per_second
    table = new_table("language", "prompts", "texts", "prompts in time")
    for code, num_prompts in estimate.num_prompts.items():
        table.add_row(code, f"{num_prompts:,}", f"{estimate.num_texts[code]:,}", f"{estimate.in_time[code]:,}")
    totals = (sum(counts.values()) for counts in (estimate.num_prompts, estimate.num_texts, estimate.in_time))
    table.add_row("all", *(f"{total:,}" for total in totals), end_section=True)
    print_table(table, f"To be scored by {plan.section.scorer} at {rate:g} requests a second")
    end = datetime.now(UTC) + timedelta(seconds=estimate.seconds)
    late = " That is too late." if end > CLOSES else ""
    print_line(
        f"{plan.num_known:,} texts are in the store already. The rest takes {duration(estimate.seconds)}, until "
        f"{end:%Y-%m-%d %H:%M} UTC; the Perspective API closes on {LAST_DAY}.{late}"
    )
    if late or estimate.in_time != estimate.num_prompts:
        print_line("The prompts of each language are taken in random order: those in time are a random sample of them.")


def print_archive(plan: ArchivePlan, missing: Counter[str]) -> None:
    """Print how many texts have a score now, and why the others have none."""
    total = sum(plan.estimate.num_texts.values())
    store = plan.section.execution.store
    print_line(f"{total - missing.total():,} of {total:,} texts scored; the store is {store}")
    for reason, number in missing.most_common():
        print_line(f"  without a score: {number:,}  {reason}")
