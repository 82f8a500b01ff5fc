"""Whatever stands in a file or an option, the user gets one line and an exit code, and nothing is deleted.

Each subject is a valid input and what reads it. The input is changed at random from a seed, and read. With
``XGRAY_FUZZ_SECONDS=600`` all subjects are changed for so long, from a seed of the day; the same seed gives the same
changes. The log that pytest shows with ``-s`` counts them.
"""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest

from tests.mutations import mutated
from tests.processes import xgray
from tests.report.example_run import write_run
from xgray.config import Prompts, TextSource
from xgray.config.file import load_experiment, load_scorer_training, parse_overrides
from xgray.data.archives.archived import ArchiveOptions
from xgray.data.generations import read_generations
from xgray.data.labelled import read_comments, read_labelled
from xgray.data.pairs import read_pairs
from xgray.data.perspective_results import read_perspective_results
from xgray.data.prompts import read_prompts
from xgray.data.ratings import read_ratings
from xgray.data.scored_texts import read_source
from xgray.data.task_file import task_files
from xgray.data.texts import TextColumns, read_text_file
from xgray.errors import XgrayError
from xgray.estimate.rates import read_rates
from xgray.report.build import build_report
from xgray.runs.status import run_state
from xgray.score.calibration.curves import read_calibration
from xgray.score.measured import read_report
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry
from xgray.score.store.forms import read_scores
from xgray.score.store.import_export import write_parquet
from xgray.score.store.store import ScoreStore
from xgray.serve.protocol import ApiError, parse
from xgray.storage.folder import Folder

SECONDS = float(os.environ.get("XGRAY_FUZZ_SECONDS", 0))
SEED = int(os.environ.get("XGRAY_FUZZ_SEED", time.strftime("%Y%m%d") if SECONDS else 0))
CHANGES = 15
"""Of each subject, where no time is given."""
SECRET = "AKIAFORTHETESTS0"
MAX_MESSAGE = 4000

EXPERIMENT = """name: e
model: {id: ./model}
languages: [en]
prompts: {path: prompts.json, limit: 5}
variants: [{name: dpo, train: {beta: 0.2}}, {name: mine, checkpoint: ./model}]
train: &a {learning_rate: 5e-6, epochs: 2}
score: {scorer: perspective, attributes: [toxicity], execution: {concurrency: 3}}
evaluate: {resamples: 200, fluency: {kind: none}}
probe: {}
vectors: {given: [[0, 1]]}
"""
TRAINING = """name: s
output: out
model: {id: ./model}
sources: [{kind: labelled, path: texts.csv, licence: none stated, language: en}]
"""
ANSWER = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.25}}}, "languages": ["en"]}
PERSPECTIVE = {"TOXICITY": 0.25, "INSULT": 0.5}
LINES: dict[str, list[dict[str, object]]] = {
    "prompts": [{"Prompt": f"So {at}", "Index": at, "Locale": "En-US"} for at in range(3)],
    "pairs": [{"prompt_text": "So", "unpert_gen_text": " good", "pert_gen_text": " bad"}] * 3,
    "chats": [
        {
            "chosen": [{"role": "user", "content": "So"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "So"}, {"role": "assistant", "content": "bad"}],
        }
    ]
    * 3,
    "rtp-lx pairs": [{"Prompt": "So", "BenignCompletions": "it is", "Completions": "it is bad", "Locale": "DE"}] * 3,
    "generations": [{"prompt": "So", "generated_text": f" {at}"} for at in range(4)],
    "results": [{"prompt": "So", "query": " x", "response": ANSWER}] * 2,
    "answers": [{"text": "So", "response": ANSWER}] * 2,
    "polyglo": [
        {"text": "So it", "prompt": "So", "continuation": " it", "meta_data": {"language": "en"}}
        | dict.fromkeys(("perspective", "prompt_perspective", "continuation_perspective"), ANSWER)
    ],
    "ratings": [
        {"Prompt": "So", "Index": at, "Locale": "En-US", "AnnotationsRaw": {"Toxicity": [at + 1, 1, 5]}}
        for at in range(3)
    ],
}
CSV = "text,label,split,language\nSo what,1,fit,en\nSo it is,0,fit,en\nSo be it,0,validate,en\nSo,1,validate,en\n"
BODY = {"comment": {"text": "So"}, "languages": ["en"], "requestedAttributes": {"TOXICITY": {}}, "clientToken": "a"}
CALIBRATION = {
    "format": 1,
    "kind": "xgray calibration",
    "scorer": "a",
    "languages": {"en": {}},
    "data": {"num_pairs": 1},
}
AGREEMENT = {"format": 1, "kind": "xgray agreement", "scorer": "a", "agreement": {"toxicity": {"en": {"num": 3}}}}

IN_ENGLISH = ArchiveOptions(languages=("en",))
Read = Callable[[Path], object]


def lines_of(name: str) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in LINES[name]).encode()


def taken(rows: Iterable[object]) -> list[object]:
    return list(rows)


SUBJECTS: dict[str, tuple[str, bytes, Read]] = {
    "experiment": ("e.yaml", EXPERIMENT.encode(), load_experiment),
    "scorer training": ("t.yaml", TRAINING.encode(), load_scorer_training),
    "options": ("options", b"{a: [1, 2.5e-3, x], b: null}", lambda file: parse_overrides(["--a.b", as_option(file)])),
    "rates": ("r.yaml", b"generate: {tokens_per_second: 3000}\nprice_per_hour: 2.5\n", read_rates),
    "task file": ("t.yaml", b"task: mine\ninclude: other.yaml\ndataset_kwargs: {data_files: [d.json]}\n", task_files),
    "prompts": ("p.jsonl", lines_of("prompts"), lambda file: taken(read_prompts(Prompts(path=str(file)), ["en"]))),
    "pairs": ("p.jsonl", lines_of("pairs"), lambda file: read_pairs(str(file))),
    "chats": ("p.jsonl", lines_of("chats"), lambda file: read_pairs(str(file))),
    "rtp-lx pairs": ("RTP_LX_DE.json", lines_of("rtp-lx pairs"), lambda file: read_pairs(str(file))),
    "generations": (
        "output-rtp_lx_en.json", lines_of("generations"), lambda file: read_generations(str(file), "base", "en", 2),
    ),
    "results": (
        "perspective_api_eval-x_en.json",
        lines_of("results"),
        lambda file: read_perspective_results(str(file), "base", "en", 2, "corrected"),
    ),
    "answers": ("a.jsonl", lines_of("answers"), lambda file: taken(read_scores(str(file), IN_ENGLISH))),
    "polyglo": ("a.jsonl", lines_of("polyglo"), lambda file: taken(read_scores(str(file)))),
    "ratings": ("RTP_LX_EN.json", lines_of("ratings"), lambda file: read_ratings([str(file)])),
    "labelled": ("en.csv", CSV.encode(), lambda file: read_labelled(str(file))),
    "comments": ("c.csv", CSV.encode(), lambda file: read_comments(str(file), 0.5, 0)),
    "texts": ("c.csv", CSV.encode(), lambda file: taken(read_text_file(file, TextColumns()))),
    "source": (
        "c.csv",
        CSV.encode(),
        lambda file: read_source(TextSource(kind="labelled", path=str(file), licence="none"), ["toxicity"]),
    ),
    "calibration": ("c.json", json.dumps(CALIBRATION).encode(), lambda file: read_calibration(str(file))),
    "agreement": ("a.json", json.dumps(AGREEMENT).encode(), lambda file: read_report(str(file))),
    "request": ("body", json.dumps(BODY).encode(), lambda file: parse(file.read_bytes())),
}  # fmt: skip
"""A file's name, its valid content, and what reads it."""


def as_option(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "surrogateescape")


def is_one_line(message: str) -> bool:
    """Whether a message is one for the user: not empty, without a traceback and without secrets."""
    return bool(message.strip()) and "Traceback" not in message and SECRET not in message


def read(call: Callable[[], object]) -> str:
    """Return what became of a call: ``read``, or ``refused``; anything else fails the test."""
    try:
        call()
    except (XgrayError, ApiError) as error:
        message = str(error)
    else:
        return "read"
    assert is_one_line(message), message[:500]
    return "refused"


def rounds(subject: str, changes: int, share: float) -> Iterable[Random]:
    """Yield a generator of random numbers for each change of a subject, which gets this share of the time."""
    end = time.monotonic() + SECONDS * share
    number = 0
    while number < changes or time.monotonic() < end:
        yield Random(f"{SEED} {subject} {number}")
        number += 1


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_reader_refuses_in_one_line_or_reads(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.chdir(tmp_path)
    name, content, reader = SUBJECTS[subject]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "other.yaml").write_text("task: other")
    file = tmp_path / name
    counts: Counter[str] = Counter()
    for random in rounds(subject, CHANGES, 0.5 / len(SUBJECTS)):
        changed = mutated(content, random)
        file.write_bytes(changed)
        try:
            counts[read(lambda: reader(file))] += 1
        except BaseException:
            print(f"{subject}: {changed[:2000]!r}")
            raise
        assert file.read_bytes() == changed
    print(f"{subject}: {dict(counts)}")


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_parts(folder: Path) -> Path:
    """Write a run with invented results, the driver's last lease and a damaged-to-be file of prompts."""
    run, _ = write_run(folder, num_prompts=2, changes={"en": (0.5, 0.3, True)})
    run.write_bytes("driver.json", b'{"token": "a", "host": "h", "pid": 1, "beat": 1, "progress": {}}')
    (run / "train" / "dpo").write_bytes("logs/attempt-0001.log", b"train/dpo, attempt 1\n10 ended: finished\n")
    return run.local


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_run_with_a_changed_file_is_described_in_lines(command, tmp_path, monkeypatch):
    """Whatever one of its files holds, a run's state is shown or refused, and so is its report; all files stay."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    run = write_parts(tmp_path)
    experiment = load_experiment(run / "experiment.yaml")
    whole = files_below(run)
    counts: Counter[str] = Counter()
    for random in rounds(command, 30 if command == "status" else 1, 0.2):
        file = random.choice(sorted(whole))
        changed = mutated(whole[file], random)
        file.write_bytes(changed)
        try:
            if command == "status":
                counts[read(lambda: run_state(Folder(str(run))))] += 1
            else:
                counts[read(lambda: build_report(Folder(str(run)), experiment))] += 1
        except BaseException:
            print(f"{file.relative_to(run)}: {changed[:2000]!r}")
            raise
        found = files_below(run)
        assert {path: found.get(path) for path in whole} == {**whole, file: changed}
        file.write_bytes(whole[file])
    print(f"{command}: {dict(counts)}")


def test_a_changed_store_gives_no_wrong_export(tmp_path):
    """What is exported of a changed store is right, and all of it; otherwise the export fails."""
    scorer = ScorerId("perspective", "1")
    entries = [ScoreEntry.of_text(f"t {at}", "en", scorer, ["toxicity"], Scored({"toxicity": 0.5})) for at in range(30)]
    ScoreStore(str(tmp_path / "s")).put(entries)
    whole = files_below(tmp_path)
    counts: Counter[str] = Counter()
    for random in rounds("store", 30, 0.05):
        file = random.choice(sorted(whole))
        file.unlink()
        file.write_bytes(mutated(whole[file], random))
        out = tmp_path / "out.parquet"
        outcome = read(
            lambda out=out: write_parquet(ScoreStore.open_existing(str(tmp_path / "s")).whole_entries(), str(out), True)
        )
        assert out.exists() == (outcome == "read")
        with contextlib.suppress(FileNotFoundError):
            out.unlink()
        file.unlink()
        file.write_bytes(whole[file])
        counts[outcome] += 1
    print(f"store: {dict(counts)}")


OPTIONS = (
    "name",
    "train.beta",
    "languages",
    "variants",
    "score",
    "evaluate.resamples",
    "generate.k",
    "runs",
    "x.y",
    "model.id",
)


def test_the_command_line_ends_with_a_line_and_leaves_all_files(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "prompts.json").write_bytes(lines_of("prompts"))
    counts: Counter[int] = Counter()
    for random in rounds("command line", 12, 0.05):
        content = EXPERIMENT.encode()
        (tmp_path / "e.yaml").write_bytes(mutated(content, random) if random.random() < 0.5 else content)
        value = mutated(b"[en, 2]", random).replace(b"\0", b"").decode("utf-8", "surrogateescape")
        before = files_below(tmp_path)
        arguments = "run", "e.yaml", "--only", "report", f"--{random.choice(OPTIONS)}", value
        done = xgray(*arguments, cwd=tmp_path, AWS_ACCESS_KEY_ID=SECRET)
        message = done.stderr.strip()
        assert done.returncode in (1, 2), arguments
        assert message.rpartition("xgray: ")[2], arguments
        assert is_one_line(message), (arguments, message[:1000])
        assert len(message) < MAX_MESSAGE
        assert "does not know this error" not in message, (arguments, message[:1000])
        assert "\x1b" not in message
        assert files_below(tmp_path) == before
        counts[done.returncode] += 1
    print(f"command line: {dict(counts)}")
