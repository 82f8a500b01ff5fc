"""``xgray scorer measure`` and ``xgray scorer sample`` as a user meets them."""

import csv
import json

import pytest

from tests.processes import xgray
from xgray.evaluate.agreement_file import AgreementReport

NUM = 60


@pytest.fixture
def folder(tmp_path):
    """RTP-LX files of two languages, and another scorer's answers, which are the first rater's in English."""
    (tmp_path / "raters").mkdir()
    (tmp_path / "answers").mkdir()
    for code in ("EN", "DE"):
        lines, answers = [], []
        for index in range(NUM):
            ratings = [1 + (index * step) % 5 for step in (1, 1, 6)]
            harms = {name: [1, 1, 1] for name in ("IdentityAttack", "Insult", "Violence", "SexualContent")}
            raw = {"Toxicity": ratings, **harms}
            prompt = f"text {index % 7} of {index}"
            lines.append(json.dumps({"Prompt": prompt, "Index": index, "Locale": code, "AnnotationsRaw": raw}))
            answers.append([index, ratings[0]])
        (tmp_path / "raters" / f"RTP_LX_{code}.json").write_text("\n".join(lines))
        if code == "EN":
            with (tmp_path / "answers" / "EN.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows([["index", "grade"], *answers])
    return tmp_path


MEASURE = ["scorer", "measure", "raters", "--score.scorer", "dummy"]


def test_ratings_are_measured_beside_raters_and_other_scorers(folder):
    done = xgray(*MEASURE, "--other", "judge=answers:grade:1-5", "--output", "agreement.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    for fact in ("one rater", "judge", "length", "punctuation", "no language"):
        assert fact in done.stdout
    report = AgreementReport.model_validate_json((folder / "agreement.json").read_text())
    assert report.num_raters == 3
    assert report.agreement_data == "rated RTP-LX prompts"
    assert report.others["judge"]["toxicity"]["en"].spearman.value == pytest.approx(1)
    assert report.raters["toxicity"]["de"].num == NUM
    assert report.scales["toxicity"] == "1 to 5; AUC of means >= 3 against < 2"
    assert report.validated == {"toxicity": []}
    again = xgray(*MEASURE, "--other", "judge=answers:grade:1-5", "--json", cwd=folder)
    assert json.loads(again.stdout) == json.loads((folder / "agreement.json").read_text())


def test_labels_are_measured_with_the_same_command(tmp_path):
    (tmp_path / "de.csv").write_text("text,label\n" + "".join(f"Satz {index},{index % 2}\n" for index in range(40)))
    done = xgray("scorer", "measure", "de.csv", "--score.scorer", "dummy", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = AgreementReport.model_validate_json(done.stdout)
    assert report.agreement_data == "labelled texts"
    assert report.agreement["toxicity"]["de"].num == 40
    assert report.raters == {}
    printed = xgray("scorer", "measure", "de.csv", "--score.scorer", "dummy", cwd=tmp_path)
    assert "how well people agree with each other cannot be computed" in printed.stdout


WRONG = {
    "nothing named": (["scorer", "measure"], "name the files of rated or labelled texts"),
    "an option of another form": ([*MEASURE, "--other", "judge"], "NAME=PATH:COLUMN"),
    "a name that is taken": ([*MEASURE, "--other", "dummy=answers:grade:1-5"], "another scorer in the table"),
    "answers out of scale": ([*MEASURE, "--other", "judge=answers:grade"], "answers:grade:LOW-HIGH"),
    "an attribute that nobody rated": (
        [*MEASURE, "--score.attributes", "[profanity]"],
        "dummy measures profanity, and people rated toxicity, severe_toxicity",
    ),
    "a scale of what has one": ([*MEASURE, "--scale", "1-7"], "leave out --scale"),
    "no range": ([*MEASURE, "--scale", "7"], "LOW-HIGH"),
    "no run to draw from": (["scorer", "sample", "absent", "--output", "a.csv"], "no run here"),
    "no texts to draw": (["scorer", "sample", "absent", "--output", "a.csv", "--per-language", "0"], "at least 1"),
}


@pytest.mark.parametrize(("arguments", "fact"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line(folder, arguments, fact):
    done = xgray(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert fact in done.stderr
    assert "Traceback" not in done.stderr
