"""The commands of the score store, of scorers and of the service: ``xgray scores``, ``scorer`` and ``serve``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from xgray.errors import InputError, StageError

Arguments = Annotated[str, Parameter(allow_leading_hyphen=True)]
Json = Annotated[bool, Parameter("--json")]
DEFAULT_STORE = "runs/scores"

scores = App(name="scores", help="The score store: what any scorer ever answered, for all runs.")
scorer = App(name="scorer", help="Fit, measure and calibrate scorers.")


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
    from xgray.data.score_files import read_scores
    from xgray.progress import ProgressDisplay
    from xgray.score.store import ScoreStore

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
    from xgray.data.score_files import write_parquet
    from xgray.score.store import ScoreStore

    if run is None:
        number = write_parquet(ScoreStore.present(store).entries(), file, with_text=not without_text)
        print(f"{file}: {number:,} scores{', without their texts' if without_text else ''}")
        return
    from xgray.scoring import export_run
    from xgray.storage import Folder

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
    from xgray.display_scores import print_archive, print_estimate
    from xgray.experiment_file import parse_overrides, split
    from xgray.progress import ProgressDisplay
    from xgray.rows import ATTRIBUTES
    from xgray.scoring import plan_archive, run_archive, score_section, store_beside
    from xgray.storage import Folder

    positional, options = split(arguments)
    runs = [Folder(one) for one in positional]
    if not runs:
        raise InputError("name the runs to archive: xgray scores archive runs/NAME ...")
    section = score_section(
        parse_overrides(options), store or store_beside(runs[0]), scorer="perspective", attributes=list(ATTRIBUTES)
    )
    plan = plan_archive(runs, section)
    missing = None
    if not estimate:
        if not as_json:
            print_estimate(plan)
        with ProgressDisplay() as progress:
            missing = run_archive(plan, address, progress)
    if as_json:
        told = {"store": section.execution.store, "num_known": plan.num_known, **asdict(plan.estimate)}
        print(json.dumps(told if missing is None else told | {"missing": missing}))
    elif missing is None:
        print_estimate(plan)
    else:
        print_archive(plan, missing)


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
    from xgray.score.store import ScoreStore

    target = ScoreStore.present(store)
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
    from xgray.score.store import ScoreStore

    if not others:
        raise InputError("name the stores to merge: xgray scores merge OTHER ... --store STORE")
    sources = [ScoreStore.present(other) for other in others]
    target = ScoreStore(store)
    for source in sources:
        target.merge(source)
    target.compact()
    print(f"{target.folder}: {target.num_rows:,} scores")


@scorer.command
def fit(labelled: str, *, output: str, as_json: Json = False) -> None:
    """Fit the embedding scorer's head on labelled texts; score.head takes the file.

    Parameters
    ----------
    labelled
        A folder of {language}.csv files with text,label and, where you split them yourself, split (fit, validate).
    output
        The head's file, such as head.json.
    as_json
        Print what the head is worth as JSON.
    """
    from xgray.display_scores import print_head
    from xgray.score.embedding import fit_to_file

    head = fit_to_file(labelled, output)
    if as_json:
        print(json.dumps({"version": head.version, **head.facts}))
    else:
        print_head(head.version, head.facts, output)


@scorer.command
def measure(*arguments: Arguments, store: str = DEFAULT_STORE, as_json: Json = False) -> None:
    """A scorer against human labels: AUC and kappa in each language, with intervals.

    Parameters
    ----------
    arguments
        A folder of {language}.csv files with text,label, and fields of the score section: --score.scorer classifier.
        With --score.calibration FILE, kappa at the calibrated threshold too.
    store
        The score store: what was scored before is not scored again.
    as_json
        Print the table as JSON.
    """
    from xgray.display_scores import print_labels
    from xgray.experiment_file import parse_overrides, split
    from xgray.progress import ProgressDisplay
    from xgray.scoring import measure as measured
    from xgray.scoring import score_section

    positional, options = split(arguments)
    if len(positional) != 1:
        raise InputError("name one folder of labelled texts: xgray scorer measure FOLDER")
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        rows = measured(section, positional[0], progress)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_labels(section.scorer, rows)


@scorer.command
def calibrate(
    *arguments: Arguments, output: str, store: str = DEFAULT_STORE, target: str = "perspective", as_json: Json = False
) -> None:
    """Map a scorer onto archived scores of another, in each language; score.calibration takes the file.

    The archived texts should be of the kind that is scored with it: a map fitted on long texts misplaces short ones.

    Parameters
    ----------
    arguments
        Fields of the score section of the scorer to calibrate (--score.scorer classifier), and runs whose toxicity is
        compared under both.
    output
        The calibration's file, such as calibration.json.
    store
        The score store that holds the target's scores.
    target
        The scorer to map onto, NAME or NAME@VERSION.
    as_json
        Print the calibration and the comparison as JSON.
    """
    from xgray.display_scores import print_calibration
    from xgray.experiment_file import parse_overrides, split
    from xgray.progress import ProgressDisplay
    from xgray.score.calibration import write_calibration
    from xgray.scoring import calibrate as calibrated
    from xgray.scoring import score_section
    from xgray.storage import Folder

    positional, options = split(arguments)
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        found = calibrated(section, target, [Folder(one) for one in positional], progress)
    write_calibration(output, found.calibration)
    if as_json:
        swaps = {name: asdict(effect) for name, effect in found.swaps.items()}
        told = {"swaps": swaps, "in_sample": found.in_sample, "not_compared": found.not_compared}
        print(json.dumps({"calibration": found.calibration.model_dump(mode="json"), **told}))
    else:
        print_calibration(found, output)


def serve(*arguments: Arguments, address: str | None = None) -> None:
    """Serve a local scorer as POST /v1alpha1/comments:analyze: clients of Perspective work with another address.

    Also there: /healthz, /readyz, /metrics and the discovery document of Google's client libraries. With a key in
    XGRAY_SERVE_KEY clients must name it. It answers on this machine alone unless --serve.host says otherwise.

    Parameters
    ----------
    arguments
        Fields of the sections score and serve: --score.scorer classifier --serve.port 8080 --serve.max-replicas 4.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    """
    from xgray.config import Score, Serve, validate
    from xgray.distributed.serve import run_service
    from xgray.experiment_file import parse_overrides

    values = parse_overrides(list(arguments))
    if others := [name for name in values if name not in ("score", "serve")]:
        raise InputError(f"--{others[0]}: only fields of the sections score and serve are taken here")
    section = validate(Serve, values.get("serve", {}), "options")
    run_service(validate(Score, values.get("score", {}), "options"), section, address)
