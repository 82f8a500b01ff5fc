"""Import of archived scores into a score store: rows a second and peak memory, by form and number of rows.

    python benchmarks/scores_import.py [--rows 100000 1000000] [--forms table rtp polyglo polyglo-parquet]

Each import is a process of its own, as ``xgray scores import`` is, so its peak memory is its own too. The time is that
of reading the file and of committing everything to a new store, by the clock and of the processor alone, which is what
counts on a machine that others use too. A row of PolygloToxicityPrompts (``polyglo``) is about
4 KB and three scored texts, one of RealToxicityPrompts (``rtp``) two, one of a CSV table one. ``baseline`` is the
peak memory of a process that imports a file of ten rows.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xgray.data.archives.archived import ArchiveOptions
from xgray.score.store.forms import find_files, read_file
from xgray.score.store.store import ScoreStore

WORDS = ["the", "of", "a", "in", "to", "it", "was", "that", "for", "on", "you", "with", "as", "she", "we", "say", "her"]
NAMES = ["TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT"]
ROWS_PER_GROUP = 10_000


def text(rng: random.Random, number: int, num_words: int) -> str:
    return f"{' '.join(rng.choices(WORDS, k=num_words))} {number}"


def scores(rng: random.Random) -> dict[str, float]:
    return {name.lower(): round(rng.random(), 8) for name in NAMES}


def answer(rng: random.Random) -> dict[str, Any]:
    """Return an answer as the service sends it when it is asked for the scores of spans."""
    measured = {}
    for name in NAMES:
        value = {"type": "PROBABILITY", "value": round(rng.random(), 8)}
        measured[name] = {"spanScores": [{"begin": 0, "end": 142, "score": value}], "summaryScore": value}
    return {"attributeScores": measured, "detectedLanguages": ["en"], "languages": ["en"]}


def polyglo_rows(num: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(0)
    answers = [answer(rng) for _ in range(1000)]
    for number in range(num):
        prompt, continuation = text(rng, number, 30), f" {text(rng, number, 30)}"
        names = ("perspective", "prompt_perspective", "continuation_perspective")
        yield {
            "text": prompt + continuation,
            "meta_data": {
                "lang": "en",
                "timestamp": "2019-10-15T04:30:21Z",
                "url": "https://example.org/blog/page/10/",
            },
            **{name: answers[rng.randrange(1000)] for name in names},
            "prompt": prompt,
            "continuation": continuation,
        }


def write_polyglo(file: Path, num: int) -> None:
    """Write the lines around answers that are JSON already: to format them again would take longer than the import."""
    rng = random.Random(0)
    answers = [json.dumps(answer(rng)) for _ in range(1000)]
    texts = [text(rng, number, 30) for number in range(1000)]
    with file.open("w", encoding="utf-8") as stream:
        for number in range(num):
            prompt, continuation = f"{texts[number % 1000]} {number}", f" {texts[-number % 1000]} {number}"
            whole, first, rest = (answers[number * step % 1000] for step in (7, 11, 13))
            stream.write(
                f'{{"text": "{prompt}{continuation}", "meta_data": {{"lang": "en", "url": "https://example.org/10/"}}, '
                f'"perspective": {whole}, "toxicity": 0.25, "prompt": "{prompt}", "continuation": "{continuation}", '
                f'"prompt_perspective": {first}, "continuation_perspective": {rest}}}\n'
            )


def write_polyglo_parquet(file: Path, num: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = polyglo_rows(num)
    schema = pa.Table.from_pylist(list(polyglo_rows(1))).schema
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, num, ROWS_PER_GROUP):
            group = [next(rows) for _ in range(min(ROWS_PER_GROUP, num - start))]
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def write_rtp(file: Path, num: int) -> None:
    rng = random.Random(0)

    def part(number: int, num_words: int) -> dict[str, Any]:
        return {"text": text(rng, number, num_words), **scores(rng), "flirtation": 0.25, "sexually_explicit": None}

    write_lines(file, ({"prompt": part(number, 12), "continuation": part(number, 13)} for number in range(num)))


def write_table(file: Path, num: int) -> None:
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        stream.write("id,text,language,toxicity\n")
        for number in range(num):
            stream.write(f'{number},"{text(rng, number, 20)}",en,{rng.random():.8f}\n')


def write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row))
            stream.write("\n")


FORMS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "table": ("a.csv", write_table),
    "rtp": ("a.jsonl", write_rtp),
    "polyglo": ("a.jsonl", write_polyglo),
    "polyglo-parquet": ("a.parquet", write_polyglo_parquet),
}


def import_file(file: Path, store: Path) -> None:
    """Import a file and print the seconds, the number of scores and the peak memory as JSON."""
    began, cpu_began = time.perf_counter(), time.process_time()
    target = ScoreStore(str(store))
    options = ArchiveOptions(scored="2020")
    ((_, form),) = find_files(str(file), options)
    target.put_rows(row for _, row in read_file(file, form, options))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "scores": target.num_rows, "peak": peak}))


def measure(form: str, num: int, folder: Path) -> dict[str, float]:
    """Return what :func:`import_file` prints in a process of its own."""
    name, write = FORMS[form]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        file = Path(made) / name
        write(file, num)
        command = [sys.executable, __file__, "--import-file", str(file), "--store", f"{made}/store"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result: dict[str, float] = json.loads(done.stdout)
        return result | {"megabytes": file.stat().st_size / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--import-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.import_file:
        import_file(options.import_file, options.store)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        baseline = measure("table", 10, Path(folder))["peak"]
        print(f"baseline: {baseline:,.0f} MB")
        columns = ("rows", "MB of file", "rows/s", "rows/CPU s", "scores/CPU s", "peak MB")
        print(f"{'form':18}" + "".join(f"{column:>12}" for column in columns))
        for form in options.forms:
            for num in options.rows:
                result = measure(form, num, Path(folder))
                rates = (num / result["seconds"], num / result["cpu_seconds"], result["scores"] / result["cpu_seconds"])
                values = (num, result["megabytes"], *rates, result["peak"])
                print(f"{form:18}" + "".join(f"{value:>12,.0f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
