import json
from pathlib import Path
from typing import Any

import pytest

from xgray.data.generations import read_generations
from xgray.data.perspective_results import read_perspective_results
from xgray.errors import InputError
from xgray.rows import ATTRIBUTES


def body(**scores: float) -> dict[str, Any]:
    attributes = {
        name.upper(): {"spanScores": [], "summaryScore": {"value": value, "type": "PROBABILITY"}}
        for name, value in scores.items()
    }
    return {"attributeScores": attributes, "languages": ["en"], "detectedLanguages": ["en"]}


def write(folder: Path, *lines: tuple[str, str, Any]) -> Path:
    file = folder / "perspective_api_eval-output-rtp_lx_en.json"
    records = ({"query": query, "response": response, "prompt": prompt} for prompt, query, response in lines)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_responses_become_scores_of_their_completions(tmp_path: Path) -> None:
    everything = dict.fromkeys(ATTRIBUTES, 0.25)
    file = write(
        tmp_path,
        ("a", "x", body(toxicity=0.9, insult=0.5)),
        ("a", "y", body(toxicity=0, flirtation=0.3)),
        ("b", "z", body(**everything)),
        ("b", "w", body(toxicity=1)),
    )
    completions, scores = read_perspective_results(str(file), "base")
    assert [(row.prompt_id, row.prompt, row.completions) for row in completions] == [
        ("en/0", "a", ["x", "y"]),
        ("en/1", "b", ["z", "w"]),
    ]
    missing = dict.fromkeys(ATTRIBUTES)
    assert scores[0].scores == [{**missing, "toxicity": 0.9, "insult": 0.5}, {**missing, "toxicity": 0.0}]
    assert scores[1].scores[0] == everything
    assert scores[0].errors == [None, None]
    assert [(row.prompt_id, row.language, row.model, row.scorer) for row in scores] == [
        ("en/0", "en", "base", "perspective"),
        ("en/1", "en", "base", "perspective"),
    ]


def test_answers_kept_as_text_are_answers(tmp_path: Path) -> None:
    file = write(tmp_path, ("a", "x", json.dumps(body(toxicity=0.9))), ("a", "y", "{broken"))
    _, (scores,) = read_perspective_results(str(file), "base")
    assert scores.scores[0]["toxicity"] == 0.9
    assert scores.errors == [None, "no score in the response: {broken"]


def test_scores_of_texts_with_their_prompts_are_refused(tmp_path: Path) -> None:
    prompt = "The weather is"
    file = write(tmp_path, *((prompt, f"{prompt} {text}", body(toxicity=0.5)) for text in ("fine", "bad")))
    with pytest.raises(InputError, match="2 of 2 completions begin with their prompt"):
        read_perspective_results(str(file), "base")
    _, (scores,) = read_perspective_results(str(file), "base", full_text="keep")
    assert len(scores.scores) == 2


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (None, "no response recorded"),
        ({}, "no response recorded"),
        (
            {"error": {"code": 429, "message": "Quota exceeded\nfor metric", "status": "X"}},
            "429: Quota exceeded for metric",
        ),
        ({"error": "timed out"}, "no score in the response: timed out"),
        ("<HttpError 503>", "no score in the response: <HttpError 503>"),
        ({"attributeScores": {}}, "no score in the response: {'attributeScores': {}}"),
        ({"attributeScores": [1]}, "no score in the response: {'attributeScores': [1]}"),
        ({"attributeScores": 5}, "no score in the response: {'attributeScores': 5}"),
        ({"attributeScores": {"FLIRTATION": {}}}, "the answer has only FLIRTATION"),
    ],
)
def test_a_failed_request_is_a_missing_score_with_its_reason(tmp_path: Path, response: Any, reason: str) -> None:
    file = write(tmp_path, ("a", "x", response), ("a", "y", body(toxicity=0.5)))
    _, (scores,) = read_perspective_results(str(file), "base", k=2)
    assert scores.scores[0] == dict.fromkeys(ATTRIBUTES)
    assert scores.errors == [reason, None]
    assert scores.scores[1]["toxicity"] == 0.5


@pytest.mark.parametrize("query", ["", " "])
def test_the_space_sent_for_an_empty_completion_is_recognised(tmp_path: Path, query: str) -> None:
    file = write(tmp_path, ("a", query, body(toxicity=0.02)), ("a", " x", body(toxicity=0.5)))
    (completions,), (scores,) = read_perspective_results(str(file), "base")
    assert completions.completions == [query, " x"]
    assert scores.errors == ["empty text", None]
    assert scores.scores[0]["toxicity"] is None
    _, (released,) = read_perspective_results(str(file), "base", empty_text="released")
    assert released.scores[0]["toxicity"] == 0.02
    assert released.errors == [None, None]


def test_ids_are_those_of_the_generations_file(tmp_path: Path) -> None:
    prompts = ["a", "b", "a", "c"]
    write(tmp_path, *((prompt, f"{i}", body(toxicity=0.1)) for i, prompt in enumerate(prompts)))
    generated = tmp_path / "output-rtp_lx_en.json"
    generated.write_text(
        "".join(json.dumps({"prompt": p, "generated_text": f"{i}"}) + "\n" for i, p in enumerate(prompts))
    )
    completions, _ = read_perspective_results(str(tmp_path), "base")
    assert completions == read_generations(str(generated), "base")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"attributeScores": {"TOXICITY": {"summaryScore": {}}}}, "TOXICITY has no summaryScore.value"),
        ({"attributeScores": {"TOXICITY": {"summaryScore": {"value": 1.5}}}}, "the score of TOXICITY is 1.5"),
        ({"attributeScores": {"TOXICITY": {"summaryScore": {"value": float("nan")}}}}, "the score of TOXICITY is nan"),
        ({"attributeScores": {"TOXICITY": {"summaryScore": {"value": "0.5"}}}}, "the score of TOXICITY is '0.5'"),
    ],
)
def test_a_score_that_is_not_a_probability_is_refused(tmp_path: Path, response: Any, expected: str) -> None:
    file = write(tmp_path, ("a", "x", response))
    with pytest.raises(InputError, match=r"rtp_lx_en\.json:1") as caught:
        read_perspective_results(str(file), "base")
    assert expected in str(caught.value)


def test_a_line_without_response_and_a_file_without_lines_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "perspective_api_eval-output-rtp_lx_en.json"
    file.write_text('{"query": "x", "prompt": "a"}\n')
    with pytest.raises(InputError, match=":1: no field 'response'"):
        read_perspective_results(str(file), "base")
    file.write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        read_perspective_results(str(file), "base")
    file.unlink()
    with pytest.raises(InputError, match="no perspective_api_eval"):
        read_perspective_results(str(tmp_path), "base")
