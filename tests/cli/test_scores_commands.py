"""The score store and the scorers as a user meets them, with a real service behind the archive."""

import csv
import json

import pytest
import yaml

from tests.faulty_service import KEY, FaultyService, serving, true_score
from tests.processes import kill_family, start_xgray, wait_until, xgray
from xgray.config import Experiment
from xgray.data.labelled import read_labelled
from xgray.rows import Completions, Scores, from_table, schema, to_table
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry
from xgray.score.store.store import ScoreStore
from xgray.storage.folder import Folder

TEXTS = {"en": [" hello", " you idiot", " thank you"], "de": [" hallo", " du Idiot", " danke"]}
NUM_PROMPTS = 20
SERVICE = {"PERSPECTIVE_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}


def call(folder, *arguments):
    return xgray(*arguments, cwd=folder, **SERVICE)


def write_run(tmp_path, name, rows):
    folder = Folder(str(tmp_path / "runs" / name))
    experiment = Experiment.model_validate(
        {"name": name, "model": {"id": "made"}, "languages": list(TEXTS), "evaluate": {"fluency": {"kind": "none"}}}
    )
    folder.write_bytes("experiment.yaml", yaml.safe_dump(experiment.model_dump(mode="json")).encode())
    for model in {row.model for row in rows}:
        rows_of_model = [row for row in rows if row.model == model]
        (folder / "generate" / model / "rows").write_parquet("rows.parquet", to_table(rows_of_model, Completions))
    return folder


def completed(code, index, model, texts):
    num = len(texts)
    return Completions(f"{code}/{index}", code, model, f"So {index},", texts, [3] * num, ["stop"] * num)


@pytest.fixture
def run(tmp_path):
    """A run with completions of two models, of which some texts are the same."""
    rows = [
        completed(code, index, model, [f"{text} {index} {model[: index % 2]}" for text in texts])
        for model in ("base", "dpo")
        for code, texts in TEXTS.items()
        for index in range(NUM_PROMPTS)
    ]
    return write_run(tmp_path, "mine", rows)


def write_generations(folder, code, prompts):
    lines = [
        json.dumps({"prompt": f"So {index},", "generated_text": text})
        for index, texts in enumerate(prompts)
        for text in texts
    ]
    (folder / f"output-rtp_lx_{code}.json").write_text("\n".join(lines) + "\n")


def distinct(run):
    rows = [
        row
        for model in ("base", "dpo")
        for row in from_table((run / "generate" / model / "rows").read_parquet(schema(Completions)), Completions)
    ]
    return {(row.language, text) for row in rows for text in row.completions}


def archive_command(run, url, *arguments, per_second=500):
    where = ["--score.perspective-url", url, "--score.execution.requests-per-second", str(per_second)]
    return "scores", "archive", run.uri, *where, *arguments


def archive(run, url, *arguments):
    return call(run.local.parents[1], *archive_command(run, url, *arguments))


def test_a_run_is_archived_and_answers_for_itself_after_the_service_is_gone(run, tmp_path):
    wanted = distinct(run)
    refused = " hello 0 "
    service = FaultyService({refused: ["too long"], " danke 0 ": ["500"]})
    with serving(service) as url:
        estimate = json.loads(archive(run, url, "--estimate", "--json").stdout)
        assert not service.received
        assert sum(estimate["num_texts"].values()) == len(wanted)
        done = archive(run, url)
        assert done.returncode == 0, done.stderr
        assert f"{len(wanted) - 1} of {len(wanted)} texts scored" in done.stdout
        assert "COMMENT_TOO_LONG" in done.stdout
        assert len(service.received) == len(wanted) + 1
        assert all(len(request.body["requestedAttributes"]) == 6 for request in service.received)
        assert archive(run, url).returncode == 0
        assert len(service.received) == len(wanted) + 1, "nothing is asked for again, nor is the refused text"
    assert KEY not in done.stdout + done.stderr

    exported = call(tmp_path, "scores", "export", "all.parquet", "--without-text")
    assert exported.returncode == 0, exported.stderr
    assert b"idiot" not in (tmp_path / "all.parquet").read_bytes()
    imported = call(tmp_path, "scores", "import", "all.parquet", "--store", "other")
    assert f"all.parquet: {len(wanted)} scores" in imported.stdout, imported.stderr
    merged = call(tmp_path, "scores", "merge", "other", "--store", "runs/scores")
    assert merged.returncode == 0, merged.stderr
    known = ScoreStore(str(tmp_path / "other")).get(
        [" du Idiot 3 b"], "de", ScorerId("perspective", f"perspective/v1alpha1@{url[7:]}"), ["threat"]
    )
    assert known[0].scores == {"threat": true_score(" du Idiot 3 b")}

    experiment = yaml.safe_load(run.read_bytes("experiment.yaml"))
    experiment["score"]["perspective_url"] = url
    run.write_bytes("experiment.yaml", yaml.safe_dump(experiment).encode())
    paper = call(tmp_path, "scores", "export", "paper", "--run", "runs/mine")
    assert paper.returncode == 0, paper.stderr
    lines = (tmp_path / "paper" / "dpo" / "perspective_api_eval-output-rtp_lx_de.json").read_text().splitlines()
    first = json.loads(lines[4])
    assert first["response"]["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == true_score(first["query"])
    assert len(lines) == 3 * NUM_PROMPTS


def texts_csv(tmp_path, rows):
    with (tmp_path / "texts.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "body", "lang"])
        writer.writerows([number, text, code] for number, (text, code) in enumerate(rows))


def test_any_file_of_texts_is_archived_languages_with_the_least_first(tmp_path):
    english, hindi = [f"you fool {index}" for index in range(8)], [f"मूर्ख {index}" for index in range(4)]
    texts_csv(tmp_path, [(text, "en") for text in english] + [(text, "hi") for text in hindi] + [(" ", "hi")])
    command = ["scores", "archive", "texts.csv", "--text-column", "body", "--score.execution.concurrency", "1"]
    service = FaultyService({})
    with serving(service) as url:
        where = ["--score.perspective-url", url, "--score.execution.requests-per-second", "200"]
        estimate = call(tmp_path, *command, *where, "--estimate", "--json")
        assert json.loads(estimate.stdout)["num_texts"] == {"en": 8, "hi": 4}, estimate.stderr
        assert not service.received
        (tmp_path / "english.txt").write_text("\n".join([*english[:4], "", "a new one"]))
        plain = call(tmp_path, "scores", "archive", "english.txt", "--language", "en", *where)
        assert plain.returncode == 0, plain.stderr
        assert "5 of 5 texts scored" in plain.stdout
        done = call(tmp_path, *command, *where)
        assert done.returncode == 0, done.stderr
        assert "4 texts are in the store already" in done.stdout
        assert "8 of 8 texts scored" in done.stdout
        received = service.received[5:]
        languages = [request.body["languages"][0] for request in received]
        assert set(languages[:3]) == {"hi"}, "of the English texts four are archived"
        assert {request.text for request in received} == {*english[4:], *hindi}
        assert call(tmp_path, *command, *where).returncode == 0
        assert len(service.received) == 13, "nothing is asked for again"
    known = ScoreStore(str(tmp_path / "runs" / "scores")).get(
        [hindi[2]], "hi", ScorerId("perspective", f"perspective/v1alpha1@{url[7:]}"), ["threat"]
    )
    assert known[0].scores == {"threat": true_score(hindi[2])}
    refused = call(tmp_path, "scores", "archive", "texts.csv", "--estimate")
    assert refused.returncode == 2
    assert "no column of texts; columns found: id, body, lang" in refused.stderr
    unknown = call(tmp_path, *command[:5], "--estimate", "--first", "ko")
    assert "--first: no texts in ko" in unknown.stderr


def test_a_killed_archive_pays_for_next_to_nothing_twice(run):
    service = FaultyService({})
    with serving(service) as url:
        process = start_xgray(*archive_command(run, url, per_second=40), cwd=run.local.parents[1], **SERVICE)
        wait_until(lambda: len(service.received) >= 120, process)
        kill_family(process)
        assert archive(run, url).returncode == 0
    wanted = distinct(run)
    assert {(request.body["languages"][0], request.text) for request in service.received} == wanted
    # A commit follows after a second, which is 40 answers, or after 50 of them.
    assert len(service.received) < len(wanted) + 100, "most of what was paid for was kept"


@pytest.mark.slow
def test_an_archived_run_is_evaluated_without_the_service(run, tmp_path, local_ray):
    with serving(FaultyService({})) as url:
        assert archive(run, url).returncode == 0
    rows = from_table((run / "generate" / "base" / "rows").read_parquet(schema(Completions)), Completions)
    german = [row for row in rows if row.language == "de"]
    write_generations(tmp_path, "de", [[*row.completions, " neu"] for row in german])
    scored = call(
        tmp_path, "score", "output-rtp_lx_de.json", "--name", "again", "--score.scorer", "perspective",
        "--score.archived", "true", "--score.perspective-url", url,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    folder = Folder(str(tmp_path / "runs" / "again" / "score" / "base" / "rows"))
    found = from_table(folder.read_parquet(schema(Scores)), Scores)
    assert {row.scorer for row in found} == {"perspective"}
    by_id = {row.prompt_id: row for row in found}
    assert by_id["de/7"].scores[1]["toxicity"] == true_score(" du Idiot 7 b")
    assert by_id["de/7"].errors == [None, None, None, "not in the score store"]


def api_answer(value):
    return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}, "languages": ["en"]}


def test_an_archive_is_imported_with_its_form_year_and_what_was_left_out(tmp_path):
    lines = [
        {"text": "you fool", "response": api_answer(0.5)},
        {"text": "hello", "response": {"error": {"message": "busy"}}},
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = call(tmp_path, "scores", "import", "a.jsonl", "--scored", "2021")
    assert done.returncode == 0, done.stderr
    assert "a.jsonl: 1 scores" in done.stdout
    assert "answers of the Perspective API; 1 of perspective/v1alpha1/2021" in " ".join(done.stdout.split())
    assert "1 texts are left out: busy" in done.stderr
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(lines[1])}\n")
    nothing = call(tmp_path, "scores", "import", "a.jsonl", "--scored", "2021")
    assert nothing.returncode == 1
    assert "0 scores read (answers of the Perspective API): 1 left out: busy" in nothing.stderr


def labelled(folder):
    folder.mkdir()
    for code in ("en", "de"):
        with (folder / f"{code}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(
                [text.text, int(text.toxic)] for text in read_labelled("embedded")[::2] if text.language == code
            )
    return str(folder)


@pytest.mark.slow
def test_a_scorer_is_fitted_measured_and_calibrated_from_the_command_line(tmp_path, run):
    folder = labelled(tmp_path / "labelled")
    fitted = call(tmp_path, "scorer", "fit", folder, "--output", "head.json", "--json")
    assert fitted.returncode == 0, fitted.stderr
    version = json.loads(fitted.stdout)["version"]

    measured = call(tmp_path, "scorer", "measure", folder, "--score.head", "head.json", "--json")
    assert measured.returncode == 0, measured.stderr
    table = json.loads(measured.stdout)["agreement"]["toxicity"]
    assert set(table) == {"en", "de", "average"}
    assert table["en"]["auc"]["low"] < table["en"]["auc"]["value"] <= 1

    write_generations(tmp_path, "fr", [[" bonjour", " merci", " idiot"]])
    given = ["score", "output-rtp_lx_fr.json", "--name", "french", "--score.head", "head.json"]
    outside = call(tmp_path, *given)
    assert outside.returncode == 2
    assert "was not validated on fr (it was on: de, en)" in outside.stderr
    forced = call(tmp_path, *given, "--score.unvalidated-languages", "true", "--json")
    assert forced.returncode == 0, forced.stderr
    scored = json.loads(forced.stdout)["stages"]["score/base"]
    assert scored["measured"]["scorer"]["validated"] == ["de", "en"]
    assert scored["counts"]["num_errors"] == 0

    with serving(FaultyService({})) as url:
        assert archive(run, url).returncode == 0
    command = ["scorer", "calibrate", "runs/mine", "--output", "cal.json", "--score.head", "head.json", "--json"]
    calibrated = call(tmp_path, *command)
    assert calibrated.returncode == 0, calibrated.stderr
    result = json.loads(calibrated.stdout)
    assert result["calibration"]["scorer_version"] == version
    assert result["calibration"]["target"] == "perspective"
    assert set(result["swaps"]) == {"mine, raw", "mine, calibrated"}
    assert call(tmp_path, *command[:-1]).returncode == 0

    measured = call(
        tmp_path, "scorer", "measure", folder, "--score.head", "head.json", "--score.calibration", "cal.json"
    )
    assert measured.returncode == 0, measured.stderr
    assert "+cal." in measured.stdout
    assert "raw" in measured.stdout
    refused = call(tmp_path, "scorer", "measure", folder, "--score.calibration", "cal.json")
    assert refused.returncode == 2, "another head's calibration"
    assert "score.calibration: made for scorer embedding" in refused.stderr


def put_english(tmp_path, texts, version="perspective/v1alpha1"):
    entries = [
        ScoreEntry.of_text(
            text, "en", ScorerId("perspective", version), ["toxicity"], Scored({"toxicity": true_score(text)})
        )
        for text in texts
    ]
    ScoreStore(str(tmp_path / "runs" / "scores")).put(entries)


def test_a_calibration_is_onto_one_of_several_services(tmp_path):
    versions = ["perspective/v1alpha1", "perspective/v1alpha1@127.0.0.1:8080"]
    for version in versions:
        put_english(tmp_path, [f"text {index}" for index in range(60)], version)
    command = ["scorer", "calibrate", "--output", "cal.json", "--score.scorer", "dummy"]
    done = call(tmp_path, *command)
    assert done.returncode == 2
    assert f"name one: {', '.join(f'perspective@{version}' for version in versions)}" in done.stderr
    result = json.loads(call(tmp_path, *command, "--target", f"perspective@{versions[1]}", "--json").stdout)
    assert result["calibration"]["target_version"] == versions[1]


def test_scores_of_different_years_are_calibrated_onto_together_only_if_asked_for(tmp_path):
    texts = [f"text {index}" for index in range(60)]
    put_english(tmp_path, texts[:40], "perspective/v1alpha1/2020")
    put_english(tmp_path, texts[20:], "perspective/v1alpha1/2023")
    command = ["scorer", "calibrate", "--output", "cal.json", "--score.scorer", "dummy", "--json"]
    refused = call(tmp_path, *command)
    assert refused.returncode == 2
    assert "name one: perspective@perspective/v1alpha1/2020, perspective@perspective/v1alpha1/2023" in refused.stderr
    assert "--mix-years" in refused.stderr
    mixed = json.loads(call(tmp_path, *command, "--mix-years").stdout)["calibration"]
    assert mixed["target_version"] == "perspective/v1alpha1/2020+2023"

    dated = [
        ScoreEntry.of_text(
            text, "en", ScorerId("other", "1"), ["toxicity"], Scored({"toxicity": true_score(text)}), date
        )
        for text, date in zip(texts, ["2021", "2022-05-01T00:00:00Z", None] * 20, strict=True)
    ]
    ScoreStore(str(tmp_path / "runs" / "scores")).put(dated)
    refused = call(tmp_path, *command, "--target", "other")
    assert refused.returncode == 2
    assert "20 of 2021, 20 of 2022, 20 of unknown" in refused.stderr
    mixed = json.loads(call(tmp_path, *command, "--target", "other", "--mix-years").stdout)["calibration"]
    assert mixed["target_version"] == "1"


def test_a_run_that_cannot_be_compared_does_not_cost_the_calibration(run, tmp_path):
    put_english(tmp_path, {text for code, text in distinct(run) if code == "en"})
    write_run(tmp_path, "german", [completed("de", 0, "base", [" hallo"])])
    write_run(tmp_path, "failed", [completed("en", 0, "base", [])])
    runs = [f"runs/{name}" for name in ("mine", "german", "failed")]
    command = ["scorer", "calibrate", *runs, "--output", "cal.json", "--score.scorer", "dummy"]
    done = call(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert "german: not compared, it has no completions in en" in done.stdout
    assert "failed, raw" in done.stdout
    assert (tmp_path / "cal.json").exists()

    lines = done.stdout.splitlines()
    assert "mine, raw" in lines
    assert "mine, calibrated; in-sample: the map was fitted on these texts" in lines
    assert "failed, calibrated" in lines
    result = json.loads(call(tmp_path, *command, "--json").stdout)
    assert (result["in_sample"], result["not_compared"]) == (["mine, calibrated"], ["german"])

    absent = call(tmp_path, "scorer", "calibrate", "runs/absent", *command[5:])
    assert absent.returncode == 2
    assert "score 0" not in absent.stderr, "nothing is scored before a wrong run is named"


WRONG = {
    "no run": (["scores", "archive", "absent"], "no run here"),
    "nothing to import": (["scores", "import"], "name the files"),
    "an unknown form": (["scores", "import", "e.yaml"], "no file of scores in a known form"),
    "another section's field": (
        ["scores", "archive", "runs/mine", "--train.beta", "1"],
        "only fields of the score section",
    ),
    "a target that is not there": (
        ["scorer", "calibrate", "--output", "c.json"],
        "no texts with scores of perspective",
    ),
    "ratings that are not there": (["scorer", "measure", "a", "b"], "a: no such file or folder (ratings)"),
    "an export to a URI of what are many files": (
        ["scores", "export", "s3://bucket/paper", "--run", "runs/mine"],
        "--run writes a folder of files on this machine",
    ),
    "a store to export that is not there": (
        ["scores", "export", "a.parquet", "--store", "typo"],
        "typo: no score store",
    ),
    "a store to export a run from": (
        ["scores", "export", "a", "--run", "runs/mine", "--store", "typo"],
        "typo: no score store",
    ),
    "a store to merge that is not there": (["scores", "merge", "typo"], "typo: no score store"),
    "a store to check that is a file": (["scores", "check", "--store", "e.yaml"], "e.yaml: no score store"),
    "a newer store": (["scores", "check", "--store", "newer"], "a score store of format 99"),
}


@pytest.mark.parametrize(("arguments", "fact"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line(run, tmp_path, arguments, fact):
    (tmp_path / "e.yaml").write_text("name: e\n")
    Folder(str(tmp_path / "newer")).write_json("format.json", {"version": 99})
    done = call(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert fact in done.stderr
    assert "Traceback" not in done.stderr


def test_an_export_of_a_damaged_store_leaves_the_last_good_one(tmp_path):
    store = ScoreStore(str(tmp_path / "scores"))
    scorer = ScorerId("perspective", "1")
    store.put(
        ScoreEntry.of_text(f"text {at}", "en", scorer, ["toxicity"], Scored({"toxicity": 0.5})) for at in range(50)
    )
    export = "scores", "export", "out.parquet", "--store", "scores"
    assert xgray(*export, cwd=tmp_path).returncode == 0
    good = (tmp_path / "out.parquet").read_bytes()
    (segment,) = (tmp_path / "scores" / "segments").iterdir()
    segment.write_bytes(segment.read_bytes()[:-200])
    refused = xgray(*export, cwd=tmp_path)
    assert refused.returncode == 1
    assert f"{segment.name}" in refused.stderr.splitlines()[-1]
    assert "xgray scores check --salvage" in refused.stderr.splitlines()[-1]
    assert (tmp_path / "out.parquet").read_bytes() == good
    salvaged = xgray("scores", "check", "--salvage", "--store", "scores", cwd=tmp_path)
    assert salvaged.returncode == 0, salvaged.stderr
    assert "all of its 50 rows were kept" in salvaged.stdout
    assert xgray(*export, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.parquet").read_bytes() == good
