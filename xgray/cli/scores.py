"""The commands of the score store, of scorers and of the service: ``xgray scores``, ``scorer`` and ``serve``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from xgray.cli.options import DEFAULT_STORE, Arguments, Json
from xgray.cli.tables import CONSOLE, titled_table
from xgray.errors import InputError, StageError

if TYPE_CHECKING:
    from xgray.config import Score
    from xgray.score.archive import ArchivePlan
    from xgray.score.scorer import Scorer


scores = App(name="scores", help="The score store: what any scorer ever answered, for all runs.")


@scores.command(name="import")
def import_scores(*files: str, store: str = DEFAULT_STORE, language: str | None = None, as_json: Json = False) -> None:
    """Take scores into the store: the paper's perspective_api_eval-*.json, Jigsaw's CSVs, exported Parquet files.

    Parameters
    ----------
    files
        Files or folders of them.
    store
        The score store's folder or URI.
    language
        The language of Perspective files whose names do not end in one.
    as_json
        Print the counts as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.score.store.import_export import read_scores
    from xgray.score.store.store import ScoreStore

    if not files:
        raise InputError("name the files to import: xgray scores import FILE ...")
    target, counts = ScoreStore(store), dict.fromkeys(files, 0)

    with ProgressDisplay() as progress:
        for file in files:

            def counted(file: str = file) -> Any:
                for entry in read_scores(file, language):
                    counts[file] += 1
                    if counts[file] % 10_000 == 0:
                        progress(f"import {Path(file).name}", counts[file], 0)
                    yield entry

            target.put(counted())
    if as_json:
        print(json.dumps({"store": target.folder.uri, "files": counts}))
        return
    for file, number in counts.items():
        print(f"{file}: {number:,} scores into {target.folder}")


@scores.command(name="export")
def export_scores(file: str, *, store: str = DEFAULT_STORE, without_text: bool = False, run: str | None = None) -> None:
    """Write the store as one Parquet file, or a run's scores as the paper's perspective_api_eval-*.json files.

    Parameters
    ----------
    file
        The Parquet file, local or behind a URI; with --run the local folder for the JSON files.
    store
        The score store's folder or URI.
    without_text
        Hashes and scores alone: may be passed on where the texts may not. Who has a text finds its score.
    run
        A run whose completions are written with their Perspective scores from the store.
    """
    from xgray.score.store.import_export import write_parquet
    from xgray.score.store.store import ScoreStore

    if run is None:
        number = write_parquet(ScoreStore.open_existing(store).entries(), file, with_text=not without_text)
        print(f"{file}: {number:,} scores{', without their texts' if without_text else ''}")
        return
    from xgray.score.archive import export_run
    from xgray.storage.folder import Folder

    if "://" in file:
        raise InputError(f"{file}: --run writes a folder of files on this machine; name a local one")
    for written in export_run(Folder(run), store, Path(file)):
        print(written)


@scores.command
def archive(
    *arguments: Arguments, store: str | None = None, estimate: bool = False, address: str | None = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Score with Perspective, before it closes, all completions of runs that have no such score yet.

    All attributes are asked for: one request answers for them together. Prompts that take the fewest requests come
    first, in all languages evenly. It goes on where it stopped.

    Parameters
    ----------
    arguments
        Run directories, and fields of the score section: --score.execution.requests-per-second 50.
    store
        The score store; by default the one beside the first run.
    estimate
        Say what it would take, and send nothing.
    address
        The Ray cluster whose other runs send with the same key.
    as_json
        Print the result as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.rows import ATTRIBUTES
    from xgray.score.archive import plan_archive, run_archive
    from xgray.score.build import score_section
    from xgray.score.store.location import run_store_uri
    from xgray.storage.folder import Folder

    positional, options = split(arguments)
    runs = [Folder(one) for one in positional]
    if not runs:
        raise InputError("name the runs to archive: xgray scores archive runs/NAME ...")
    section = score_section(
        parse_overrides(options), store or run_store_uri(runs[0]), scorer="perspective", attributes=list(ATTRIBUTES)
    )
    plan = plan_archive(runs, section)
    missing = None
    if not estimate:
        if not as_json:
            print_estimate(plan)
        with _archive_scorer(section, address) as scorer, ProgressDisplay() as progress:
            missing = run_archive(plan, scorer, progress)
    if as_json:
        told = {"store": section.execution.store, "num_known": plan.num_known, **asdict(plan.estimate)}
        print(json.dumps(told if missing is None else told | {"missing": missing}))
    elif missing is None:
        print_estimate(plan)
    else:
        print_archive(plan, missing)


@contextmanager
def _archive_scorer(section: Score, address: str | None) -> Iterator[Scorer]:
    """Build the scorer; on a cluster (``address`` or ``RAY_ADDRESS``) it shares its key's rate limit with other runs."""
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
def check(*, store: str = DEFAULT_STORE, salvage: bool = False) -> None:
    """Read the whole store and name what is damaged in it.

    Parameters
    ----------
    store
        The score store's folder or URI.
    salvage
        Replace damaged files by what is sound in them.
    """
    from xgray.score.store.store import ScoreStore

    target = ScoreStore.open_existing(store)
    damaged = target.check()
    for name in damaged:
        print(f"{target.folder / 'segments' / name} is damaged{'; what is sound of it was kept' if salvage else ''}")
    if damaged and salvage:
        target.salvage(damaged)
    elif damaged:
        raise StageError(
            f"{len(damaged)} damaged files: --salvage keeps what is sound in them, the rest is scored anew"
        )
    print(f"{target.folder}: {target.num_rows:,} scores")


@scores.command
def merge(*others: str, store: str = DEFAULT_STORE) -> None:
    """Take all that other stores hold into this one: a set union, whatever the order.

    Parameters
    ----------
    others
        The stores to take from.
    store
        The store that takes.
    """
    from xgray.score.store.store import ScoreStore

    if not others:
        raise InputError("name the stores to merge: xgray scores merge OTHER ... --store STORE")
    sources = [ScoreStore.open_existing(other) for other in others]
    target = ScoreStore(store)
    for source in sources:
        target.merge(source)
    target.compact()
    print(f"{target.folder}: {target.num_rows:,} scores")


def _long(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 5400 else f"{seconds / 60:.1f} minutes"


def print_estimate(plan: ArchivePlan) -> None:
    """What is left to archive, and whether there is time for it."""
    from xgray.score.archive import CLOSES, LAST_DAY

    told, rate = plan.estimate, plan.section.execution.requests_per_second
    table = titled_table(
        f"To be scored by {plan.section.scorer} at {rate:g} requests a second",
        "language", "prompts", "texts", "prompts in time",
    )  # fmt: skip
    for code, number in told.num_prompts.items():
        table.add_row(code, f"{number:,}", f"{told.num_texts[code]:,}", f"{told.in_time[code]:,}")
    totals = (sum(one.values()) for one in (told.num_prompts, told.num_texts, told.in_time))
    table.add_row("all", *(f"{number:,}" for number in totals), end_section=True)
    CONSOLE.print(table)
    ends = datetime.now(UTC) + timedelta(seconds=told.seconds)
    late = " That is too late." if ends > CLOSES else ""
    CONSOLE.print(
        f"{plan.num_known:,} texts are in the store already. The rest takes {_long(told.seconds)}, until "
        f"{ends:%Y-%m-%d %H:%M} UTC; the Perspective API closes on {LAST_DAY}.{late}",
        soft_wrap=True,
    )


def print_archive(plan: ArchivePlan, missing: Counter[str]) -> None:
    total = sum(plan.estimate.num_texts.values())
    CONSOLE.print(
        f"{total - missing.total():,} of {total:,} texts scored; the store is {plan.section.execution.store}",
        soft_wrap=True,
    )
    for reason, number in missing.most_common():
        CONSOLE.print(f"  without a score: {number:,}  {reason}")
