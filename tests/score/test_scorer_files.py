"""The scorers that come with xgray: each file is read, and scores texts with a tiny model of its architecture."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.faulty_service import KEY
from tests.score.faulty_openai import FaultyOpenAI, running
from tests.score.tiny_classifier import tiny_classifier
from tests.score.tiny_guard import CHAT, tiny_guard
from xgray.config import Score
from xgray.config.file import load_score, parse_overrides
from xgray.config.shipped import shipped_scorers
from xgray.errors import InputError
from xgray.score.build import build_scorer, score_section
from xgray.score.scorer import score_texts

ROOT = Path(__file__).parents[2]
TEXTS = ["You are an idiot.", "Thank you for your help.", "Nobody asked you, stupid."]
HAZARDS = (
    "<s>{% for message in messages %}Is there unsafe content in 'User' messages?\n\nUser: "
    "{% if message['content'] is string %}{{ message['content'].strip() }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}\n\n"
    "Write 'safe' or 'unsafe'.<|im_end|><|im_start|>assistant{% endfor %}"
)
RISK = (
    "<s><|im_start|>user\nIs it {{ guardian_config['risk_name'] }}?\n\n{{ messages[-1]['content'] }}<|im_end|>\n"
    "<|im_start|>assistant"
)
GUARDS = {
    "qwen3guard-0.6b": ("qwen3", CHAT, "<|im_start|>assistant\nSafety: "),
    "qwen3guard-4b": ("qwen3", CHAT, "<|im_start|>assistant\nSafety: "),
    "qwen3guard-8b": ("qwen3", CHAT, "<|im_start|>assistant\nSafety: "),
    "polyguard-qwen": ("qwen2", CHAT, "<|im_start|>assistant\nHarmful request: "),
    "polyguard-qwen-smol": ("qwen2", CHAT, "<|im_start|>assistant\nHarmful request: "),
    "llama-guard-3-8b": ("llama", HAZARDS, "'unsafe'.<|im_end|><|im_start|>assistant\n\n"),
    "llama-guard-3-1b": ("llama", HAZARDS, "'unsafe'.<|im_end|><|im_start|>assistant\n\n"),
    "llama-guard-4-12b": ("llama4", HAZARDS, "'unsafe'.<|im_end|><|im_start|>assistant\n\n"),
    "shieldgemma-2b": ("gemma2", None, "step by step to be sure we answer\ncorrectly.\n"),
    "granite-guardian-3.2-5b": ("granite", RISK, "<|im_start|>assistant"),
}
"""Each guard's architecture, a chat template with the interface of its own, and the end of the prompt."""
CLASSIFIERS = {"textdetox-xlmr-large": ["LABEL_0", "LABEL_1"], "detoxify-multilingual": ["toxic"]}
SERVICES = {"omni-moderation": "moderation", "llm-judge": "judge"}


def section(name, **changes):
    """The file's section, with another model."""
    values = load_score(name)
    options = values[values["scorer"]]
    options["model"] = options["model"] | changes if isinstance(options["model"], dict) else options["model"]
    return Score.model_validate(values)


def test_there_is_a_test_and_a_link_for_every_file():
    assert set(shipped_scorers()) == {*GUARDS, *CLASSIFIERS, *SERVICES}
    readme = (ROOT / "jobs" / "README.md").read_text()
    for name, path in shipped_scorers().items():
        assert (ROOT / "jobs" / "scorers" / f"{name}.yaml").resolve() == path.resolve()
        assert f"scorers/{name}.yaml" in readme


@pytest.mark.parametrize("name", shipped_scorers())
def test_every_file_says_what_it_measures_where_and_under_which_licence(name):
    text = shipped_scorers()[name].read_text()
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    subjects = {line.partition(":")[0] for line in head}
    assert {"Measures", "Languages", "Licence", "Use"} <= subjects
    assert f"--score {name}" in text
    parsed = Score.model_validate(load_score(name))
    assert parse_overrides(["--score", name]) == {"score": load_score(name)}
    codes = getattr(parsed, parsed.scorer).languages
    assert (codes == []) == (name in SERVICES)


@pytest.mark.parametrize("name", GUARDS)
def test_guards_score_texts(tmp_path, name):
    kind, template, end = GUARDS[name]
    path = tiny_guard(tmp_path, kind, max_length=2048, chat_template=template)
    parsed = section(name, id=path, revision=None, dtype="float32")
    scorer = build_scorer(parsed)
    head, _, tail = scorer.provenance()["prompt"].partition("{text}")
    assert tail.endswith(end)
    assert head
    results = asyncio.run(score_texts(scorer, TEXTS, "en", "corrected"))
    scores = [result.scores["toxicity"] for result in results]
    assert len(set(scores)) == len(TEXTS)
    assert all(0 < score < 1 for score in scores)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_score_texts(tmp_path, name):
    path = tiny_classifier(tmp_path, labels=CLASSIFIERS[name])
    scorer = build_scorer(section(name, id=path, revision=None))
    assert scorer.provenance()["activation"] == ("sigmoid" if name == "detoxify-multilingual" else "softmax")
    results = asyncio.run(score_texts(scorer, TEXTS, "en", "corrected"))
    assert all(0 < result.scores["toxicity"] < 1 for result in results)


@pytest.mark.parametrize("name", SERVICES)
def test_services_score_texts(name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = load_score(name)["openai"]
    service = FaultyOpenAI({})

    async def main():
        async with running(service, file["endpoint"]) as scorer:
            return await score_texts(scorer, TEXTS, "en", "corrected")

    assert all(result.scores for result in asyncio.run(main()))
    assert len(service.received) == len(TEXTS)
    facts = build_scorer(Score.model_validate(load_score(name))).provenance()
    assert (facts["endpoint"], facts["model"]) == (SERVICES[name], file["model"])


def test_a_file_of_ones_own_is_taken_and_later_options_change_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("score: {scorer: guard, guard: {model: {id: a/b}, labels: {toxicity: {No: 0, Yes: 1}}}}\n")
    values = parse_overrides(["--score", str(file), "--score.guard.engine", "vllm", "--seed", "1"])
    assert values["seed"] == 1
    guard = Score.model_validate(values["score"]).guard
    assert (guard.model.id, guard.engine, guard.labels) == ("a/b", "vllm", {"toxicity": {"No": 0.0, "Yes": 1.0}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "scorer: guard\n",
            r"mine\.yaml: a scorer's file holds the section 'score' and nothing else \(found: scorer\)",
        ),
        ("score: {}\nname: a\n", r"found: score, name"),
        ("score: guard\n", r"holds the section 'score'"),
        ("score: {a: 1, a: 2}\n", r"mine\.yaml:1: no valid YAML: key 'a' is given twice"),
    ],
)
def test_a_file_that_is_no_scorers_file_is_refused(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse_overrides(["--score", str(tmp_path / "mine.yaml")])


def test_an_unknown_scorer_lists_the_known_ones():
    with pytest.raises(InputError, match=r"--score: no file 'qwen4'.*" + re.escape("qwen3guard-0.6b")):
        parse_overrides(["--score", "qwen4"])


def test_a_command_of_one_scorer_refuses_several():
    overrides = parse_overrides(["--score", "qwen3guard-0.6b", "--score", "embedding"])
    with pytest.raises(InputError, match=r"--score: 2 scorers are named, and this command takes one"):
        score_section(overrides, None)
    assert score_section(parse_overrides(["--score", "embedding"]), None).scorer == "embedding"
