"""vLLM gives the same scores as transformers, from the same tokens and activation with other kernels."""

import asyncio

import pytest

from tests.score.tiny_classifier import classifier_section, tiny_classifier
from xgray.data.labelled import read_labelled
from xgray.errors import InputError
from xgray.rows import EMPTY_TEXT
from xgray.score.build import build_scorer
from xgray.score.classifier import FLOAT32_TOLERANCE
from xgray.score.scorer import score_texts

pytestmark = pytest.mark.slow

TEXTS = [row.text for row in read_labelled("embedded")[::32]] + ["x", "y" * 30_000, "half \ud83d pair", "a\u2028b", ""]


def scores(scorer, texts):
    results = asyncio.run(score_texts(scorer, texts, "en", "corrected"))
    return [result.scores["toxicity"] if result.scores else result.error for result in results]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("xlm-roberta", {}), ("bert", {"problem_type": "multi_label_classification"}), ("llama", {})],
)
def test_scores_equal_those_of_transformers_whatever_the_batch(tmp_path, kind, changes):
    path = tiny_classifier(tmp_path, kind, **changes)
    expected = scores(build_scorer(classifier_section(path)), TEXTS)
    scorer = build_scorer(classifier_section(path, "vllm"))
    served = scores(scorer, TEXTS)
    facts = scorer.provenance()
    assert (facts["scorer"], facts["max_length"], facts["num_cut"]) == ("vllm", 64, 2)
    assert served[-1] == EMPTY_TEXT
    assert served[:-1] == pytest.approx(expected[:-1], abs=FLOAT32_TOLERANCE)
    assert [scores(scorer, [text])[0] for text in TEXTS[:-1]] == pytest.approx(served[:-1], abs=FLOAT32_TOLERANCE)


def test_a_model_that_vllm_does_not_serve_is_refused(tmp_path):
    path = tiny_classifier(tmp_path, "deberta-v2", position_buckets=32, pos_att_type=["p2c", "c2p"])
    assert scores(build_scorer(classifier_section(path)), ["word"])
    with pytest.raises(InputError, match=r"score\.classifier\.model: vLLM does not take"):
        scores(build_scorer(classifier_section(path, "vllm")), ["word"])
