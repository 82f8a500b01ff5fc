"""The agreement of a fine-tuned scorer and its card, against numbers computed otherwise."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from xgray.config import ScorerTraining
from xgray.score.scorer import Scored
from xgray.score.trained.agreement import held_out_agreement, score_table, source_agreement
from xgray.score.trained.card import agreement_cells, make_card, readme, score_section

NUM = 240


@pytest.fixture(scope="module")
def table():
    """Texts of two languages and two sources, whose targets are in the texts; insults are judged in every second."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 5, NUM) / 4
    insults = [None if index % 2 else float(value) for index, value in enumerate(targets)]
    return pa.table(
        {
            "text": [f"{value:.2f} {index}" for index, value in enumerate(targets)],
            "language": ["en" if index < NUM // 2 else "de" for index in range(NUM)],
            "source": ["other" if index % 4 == 0 else "mine" for index in range(NUM)],
            "group": [index % 80 for index in range(NUM)],
            "toxicity": pa.array(targets, pa.float32()),
            "insult": pa.array(insults, pa.float32()),
        }
    )


class Reader:
    """Scores a text by the number in it, with noise; one text has no score."""

    name, version, device, validated = "reader", "1", "cpu", ()
    attributes = ("toxicity", "insult")

    async def score(self, texts, language):
        return [self.scored(text) for text in texts]

    def scored(self, text):
        value, index = text.split()
        if index == "7":
            return Scored(None, "no score")
        noisy = 0.8 * float(value) + 0.2 * (int(index) * 37 % 100) / 100
        return Scored({"toxicity": noisy, "insult": noisy})


def test_agreement_by_attribute_and_language(table):
    scores = score_table(Reader(), table)
    assert np.isnan(scores["toxicity"]).sum() == 1
    agreement = held_out_agreement(table, scores, ["other"])
    assert list(agreement["toxicity"]) == ["de", "en", "average"]
    is_english = (np.array(table["language"]) == "en") & (np.array(table["source"]) == "mine")
    targets, values = np.array(table["toxicity"], float)[is_english], scores["toxicity"][is_english]
    present = ~np.isnan(values)
    english = agreement["toxicity"]["en"]
    assert (english.num, english.num_missing) == (present.sum(), 1)
    assert english.spearman.value == pytest.approx(spearmanr(targets[present], values[present]).statistic)
    assert english.bias.value == pytest.approx((values - targets)[present].mean())
    assert english.mean_absolute_error.value == pytest.approx(np.abs(values - targets)[present].mean())
    assert english.num_toxic == (targets[present] >= 0.5).sum()
    assert english.num_benign == (targets[present] < 0.25).sum()
    assert english.auc.value == 1
    assert english.spearman.low < english.spearman.value < english.spearman.high
    average = agreement["toxicity"]["average"]
    assert average.spearman.value == pytest.approx(
        (english.spearman.value + agreement["toxicity"]["de"].spearman.value) / 2
    )
    whole = source_agreement(table, scores, "other")
    assert whole["toxicity"]["en"].num + whole["toxicity"]["de"].num == NUM / 4
    assert agreement["insult"]["en"].num < english.num


def training(**fields):
    source = {"kind": "scores", "licence": "MIT", "columns": {"toxicity": "tox"}}
    sources = [source | {"path": "mine.csv"}, source | {"path": "other.csv", "held_out": True}]
    model = {"id": "org/encoder", "revision": "abc"}
    values = {"name": "mine", "output": "out", "model": model, "sources": sources, "attributes": ["toxicity", "insult"]}
    return ScorerTraining.model_validate(values | fields)


def card_of(table, section):
    scores = score_table(Reader(), table)
    counts = dict.fromkeys(("num_train", "num_validation", "num_test", "num_removed", "num_left_out"), 10)
    sources = {name: counts | {"languages": ["de", "en"]} for name in ("mine", "other")}
    facts = {"sources": sources, "languages": ["de", "en", "fr"], "num_tokens": 1000, "num_cut": 3}
    summary = {"steps": 10, "exported_step": 5, "best_eval_loss": 0.5}
    fingerprints = {"model": "org/encoder@abc", "sources": {"mine": "f1", "other": "f2"}}
    tables = held_out_agreement(table, scores, ["other"]), {"other": source_agreement(table, scores, "other")}
    return make_card(section, fingerprints, facts, summary, *tables)


def test_the_card_and_its_text(table):
    card = card_of(table, training())
    assert card["languages"] == [], "no language has the texts that the floor asks for"
    assert card["data"]["other"]["fingerprint"] == "f2"
    assert card["data"]["mine"]["licence"] == "MIT"
    assert "path" not in card["data"]["mine"]
    limits = "\n".join(card["limits"])
    assert "Not validated in de en fr" in limits
    assert "No text was of ar cs es" in limits
    assert "Learned from scores (mine, other)" in limits
    assert "held out as a whole" not in limits
    text = readme(card)
    assert "| toxicity | en | its sources | " in text
    assert "| toxicity | average | other | " in text
    assert "| other (held out as a whole) | scores | MIT | de en | 10 | 10 | 10 | 1 |" in text
    assert len(list(agreement_cells(card, str, str))) == 2 * 2 * 3
    section = score_section(card, "folder")
    assert section["classifier"]["labels"] == {"toxicity": "toxicity", "insult": "insult"}


def test_languages_that_reach_the_floor_are_validated(table):
    twice = pa.concat_tables([table, table.set_column(0, "text", pa.array([f"{t.as_py()}1" for t in table["text"]]))])
    card = card_of(twice, training())
    assert card["languages"] == ["de", "en"]
    assert "language: [de, en]" in readme(card)
