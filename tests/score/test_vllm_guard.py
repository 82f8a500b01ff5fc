"""vLLM gives a guard's scores as transformers does, from the same tokens with other kernels and its prefix cache."""

import asyncio

import pytest

from tests.score.tiny_guard import guard_section, tiny_guard
from xgray.config.file import load_score
from xgray.data.labelled import read_labelled
from xgray.rows import EMPTY_TEXT
from xgray.score.build import build_scorer
from xgray.score.classifier import FLOAT32_TOLERANCE
from xgray.score.scorer import score_texts

pytestmark = pytest.mark.slow

TEXTS = [row.text for row in read_labelled("embedded")[::32]] + ["x", "y" * 30_000, "half \ud83d pair", "a\u2028b", ""]


def scores(scorer, texts):
    results = asyncio.run(score_texts(scorer, texts, "en", "corrected"))
    return [result.scores["toxicity"] if result.scores else result.error for result in results]


def test_scores_equal_those_of_transformers_whatever_the_batch(tmp_path):
    guard = load_score("shieldgemma-2b")["guard"]
    options = {name: guard[name] for name in ("chat", "template")} | {
        "labels": {"toxicity": {"No": 0, "Cont": 0.25, "Yes": 1}}
    }
    path = tiny_guard(tmp_path, max_length=512)
    expected = scores(build_scorer(guard_section(path, **options)), TEXTS)
    scorer = build_scorer(guard_section(path, engine="vllm", **options))
    served = scores(scorer, TEXTS)
    facts = scorer.provenance()
    assert (facts["engine"], facts["num_cut"]) == ("vllm", 1)
    assert facts["num_shared_tokens"] > 50
    assert served[-1] == EMPTY_TEXT
    assert served[:-1] == pytest.approx(expected[:-1], abs=FLOAT32_TOLERANCE)
    assert max(served[:-1]) - min(served[:-1]) > 0.05
    assert [scores(scorer, [text])[0] for text in TEXTS[:-1]] == pytest.approx(served[:-1], abs=FLOAT32_TOLERANCE)
