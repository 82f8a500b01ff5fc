import asyncio

import pytest

from xgray.config import Score
from xgray.errors import InputError
from xgray.evaluate.agreement_file import Agreement, AgreementReport, Measured, read_table
from xgray.runs.manifest import section_payload
from xgray.score.build import build_scorer


def report(**changes):
    def agreement(spearman):
        return Agreement(num=871, spearman=Measured(value=spearman), auc=Measured(value=0.9))

    values = {
        "scorer": "dummy", "scorer_version": "1", "agreement_data": "rated RTP-LX prompts", "fingerprint": "0" * 64,
        "num_raters": 3, "scales": {"toxicity": "1 to 5"}, "raters": {}, "others": {}, "baselines": {},
        "agreement": {"toxicity": {"de": agreement(0.7), "en": agreement(0.3)}}, "validated": {"toxicity": ["de"]},
    }  # fmt: skip
    return AgreementReport.model_validate(values | changes)


def section(tmp_path, content):
    (tmp_path / "agreement.json").write_text(content)
    execution = {"agreement": str(tmp_path / "agreement.json")}
    return Score.model_validate({"scorer": "dummy", "execution": execution})


def test_a_scorer_states_the_agreement_that_was_measured(tmp_path):
    written = report()
    stated = section(tmp_path, written.model_dump_json(exclude_none=True))
    plain = Score(scorer="dummy")
    scorer = build_scorer(stated)
    provenance = scorer.provenance()
    assert read_table(provenance["agreement"], "provenance") == written.agreement
    assert provenance["agreement_data"] == "rated RTP-LX prompts"
    assert scorer.validated == ("de",), "English does not reach the floor"
    texts = ["hello", "you idiot"]
    scores = [asyncio.run(each.score(texts, "de")) for each in (scorer, build_scorer(plain))]
    assert scores[0] == scores[1]
    assert section_payload(stated) == section_payload(plain), "no fingerprint changes"


WRONG = {
    "another version": (report(scorer_version="2").model_dump_json(), "is of dummy version 2, not of dummy version 1"),
    "another file": ('{"auc": {}}', "it holds no agreement"),
    "no JSON": ("auc", "it holds no agreement"),
    "half a file": ('{"kind": "xgray agreement", "format": 1}', "scorer: Field required"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_not_of_the_scorer_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        build_scorer(section(tmp_path, content))


def test_a_file_that_is_not_there_is_named():
    execution = {"agreement": "absent.json"}
    with pytest.raises(InputError, match=r"score.execution.agreement: absent.json: no such file"):
        build_scorer(Score.model_validate({"scorer": "dummy", "execution": execution}))
