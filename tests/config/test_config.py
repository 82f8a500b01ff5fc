from pathlib import Path
from typing import Any

import pytest

from xgray.config import Experiment, Train, merge
from xgray.config.file import load_experiment, parse_overrides
from xgray.errors import InputError
from xgray.languages import LANGUAGES

MINIMAL = "name: mine\nmodel: {id: some/model}\n"


def load(folder: Path, text: str, *overrides: str) -> Experiment:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return load_experiment(file, parse_overrides(list(overrides)))


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    assert "mine.yaml" in str(caught.value)
    return str(caught.value)


def test_only_name_and_model_are_needed(tmp_path: Path) -> None:
    experiment = load(tmp_path, MINIMAL)
    assert experiment.languages == list(LANGUAGES)
    assert [variant.name for variant in experiment.variants] == ["dpo"]
    assert experiment.train_section(experiment.variants[0]) == Train()
    message = refused(tmp_path, "train: {}\n")
    assert "name: Field required" in message
    assert "model: Field required" in message


@pytest.mark.parametrize(
    ("section", "unknown", "nearest"),
    [
        ("trian: {}", "trian", "train"),
        ("train: {learning-rate: 1}", "train.learning-rate", "learning_rate"),
        ("generate: {execution: {batch_siz: 1}}", "generate.execution.batch_siz", "batch_size"),
        ("evaluate: {fluency: {model: {id: a, revison: b}}}", "evaluate.fluency.model.revison", "revision"),
        ("variants: [{name: a, chekpoint: b}]", "variants.0.chekpoint", "checkpoint"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, section: str, unknown: str, nearest: str
) -> None:
    assert f"unknown key {unknown!r}; did you mean {nearest!r}?" in refused(tmp_path, f"{MINIMAL}{section}\n")


def test_a_key_that_resembles_nothing_lists_the_known_ones(tmp_path: Path) -> None:
    assert "unknown key 'prompts.zzzz'; known: path, limit" in refused(tmp_path, MINIMAL + "prompts: {zzzz: 1}\n")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("generate: {k: 0}", "generate.k: Input should be greater than or equal to 1 (got 0)"),
        ("generate: {top_p: 1.1}", "generate.top_p: "),
        ("train: {learning_rate: .inf}", "train.learning_rate: Input should be a finite number"),
        ("train: {method: qlora4}", "train.method: "),
        ("seed: -1", "seed: "),
        ("seed: true", "seed: a number is expected, not true"),
        ("generate: {k: yes}", "generate.k: "),
        ("train: {beta: false}", "train.beta: a number is expected, not false"),
        ("languages: []", "languages: at least one language"),
        ("languages: [en, xx]", "languages: unknown language 'xx'"),
        ("languages: [zh, ZH-Hans]", "languages: a language is listed twice"),
        ("variants: [{name: base}]", "'base' is the name of the model before tuning"),
        ("variants: [{name: a}, {name: a}]", "two variants have the same name: a a"),
        ("variants: [{name: ../a}]", "variants.0.name: "),
        ("variants: [{name: a, train: {bta: 1}}]", "variants.a.train: unknown key 'bta'; did you mean 'beta'?"),
    ],
)
def test_wrong_value_is_refused_by_file_and_field(tmp_path: Path, section: str, expected: str) -> None:
    assert expected in refused(tmp_path, f"{MINIMAL}{section}\n")


def test_every_wrong_field_gets_a_line_of_its_own(tmp_path: Path) -> None:
    message = refused(tmp_path, MINIMAL + "generate: {k: 0}\ntrain: {beta: 0}\n")
    assert len(message.splitlines()) == 2
    assert all("mine.yaml: " in line for line in message.splitlines())


def test_languages_may_be_spelt_as_files_spell_them(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL + "languages: [ZH-Hans, PT]\n").languages == ["zh-hans", "pt"]


def test_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    text = MINIMAL + "train: {learning_rate: 1e-6}\nvariants: [{name: a, train: {learning_rate: 5E-7}}]\n"
    experiment = load(tmp_path, text)
    assert experiment.train.learning_rate == 1e-6
    assert experiment.train_section(experiment.variants[0]).learning_rate == 5e-7


def test_text_that_looks_like_a_number_is_text_in_quotes(tmp_path: Path) -> None:
    experiment = load(tmp_path, MINIMAL + "variants: [{name: '5e-6', checkpoint: \"1E5\"}]\n", "--name", "'5e-7'")
    assert (experiment.name, experiment.variants[0].name, experiment.variants[0].checkpoint) == ("5e-7", "5e-6", "1E5")
    values = parse_overrides(["--a", "[1e-5, -2.E+3, '1e-5', 1e5x, 1e]"])
    assert values == {"a": [1e-5, -2e3, "1e-5", "1e5x", "1e"]}
    assert "name: Input should be a valid string (got 5e-06)" in refused(tmp_path, MINIMAL, "--name", "5e-6")


@pytest.mark.parametrize(
    ("text", "expected"), [("no", False), ("off", False), ("yes", True), ("on", True), ("true", True)]
)
def test_words_that_older_yaml_reads_as_booleans_are_booleans(tmp_path: Path, text: str, expected: bool) -> None:
    experiment = load(tmp_path, f"{MINIMAL}report: {{mask: {text}}}\n", "--generate.execution.use-gpu", text)
    assert (experiment.report.mask, experiment.generate.execution.use_gpu) == (expected, expected)


@pytest.mark.parametrize("tokens", [("--train", "5", "--train.beta", "1"), ("--train.beta", "1", "--train", "5")])
def test_a_section_given_as_a_whole_and_in_part_is_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="--train is given a value of its own"):
        parse_overrides(list(tokens))
    assert parse_overrides(["--train", "{beta: 1}", "--train.beta", "2"]) == {"train": {"beta": 2}}


def test_variant_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    text = (
        MINIMAL + "train: {beta: 0.2, epochs: 3, execution: {num_workers: 2}}\n"
        "variants:\n- {name: a, train: {seed: 1}}\n"
        "- {name: b, train: {beta: 0.3, execution: {strategy: zero2}}}\n"
    )
    experiment = load(tmp_path, text)
    a, b = (experiment.train_section(variant) for variant in experiment.variants)
    assert (a.seed, a.beta, a.epochs, a.execution.num_workers) == (1, 0.2, 3, 2)
    assert (b.seed, b.beta, b.epochs) == (None, 0.3, 3)
    assert (b.execution.num_workers, b.execution.strategy) == (2, "zero2")


def test_merge_leaves_both_sides_as_they_were() -> None:
    old: dict[str, Any] = {"a": {"x": 1, "y": 2}, "b": [1]}
    new: dict[str, Any] = {"a": {"y": 3}, "b": [2]}
    assert merge(old, new) == {"a": {"x": 1, "y": 3}, "b": [2]}
    assert old == {"a": {"x": 1, "y": 2}, "b": [1]}
    assert new == {"a": {"y": 3}, "b": [2]}


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    experiment = load(
        tmp_path,
        MINIMAL + "train: {learning_rate: 1.0e-5, beta: 0.2}\n",
        *("--train.learning-rate", "5e-6"),
        "--generate.k=4",
        *("--languages", "en,de"),
        *("--evaluate.fluency.kind", "none"),
        *("--train.max_steps", "null"),
    )
    assert experiment.train.learning_rate == 5e-6
    assert experiment.train.beta == 0.2
    assert experiment.train.max_steps is None
    assert experiment.generate.k == 4
    assert experiment.languages == ["en", "de"]
    assert experiment.evaluate.fluency.kind == "none"


def test_later_override_wins() -> None:
    assert parse_overrides(["--generate.k", "1", "--seed=3", "--generate.k", "2"]) == {"generate": {"k": 2}, "seed": 3}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["--generate.k"], "--generate.k needs a value"),
        (["generate.k", "3"], "cannot read 'generate.k'"),
        (["--name", "[a"], "--name: cannot read the value '[a'"),
        (["--name", "2024-31-12"], "--name: cannot read the value '2024-31-12'; it is read as YAML, so quote it"),
        (["--seed=0x_"], "--seed=0x_: cannot read the value '0x_'"),
        (["--seed", "!!int x"], "--seed: cannot read the value '!!int x'"),
        (["--seed", "!!bool x"], "--seed: cannot read the value '!!bool x'"),
    ],
)
def test_broken_override_is_refused(tokens: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_overrides(tokens)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a mapping with at least 'name' and 'model'"),
        (b"- name\n", "a mapping with at least 'name' and 'model'"),
        (b"name: a\nmodel: {id: [\n", "mine.yaml:3: no valid YAML"),
        (b"name: a\nmodel: {id: b}\nname: c\n", "mine.yaml:3: no valid YAML: key 'name' is given twice"),
        (b"name: a\nmodel: {id: b, id: c}\n", "mine.yaml:2: no valid YAML: key 'id' is given twice"),
        (b"name: a\nseed: 2024-31-12", "mine.yaml:2: no valid YAML: '2024-31-12' is no timestamp; quote a text"),
        (b"name: a\nseed: !!int x\n", "mine.yaml:2: no valid YAML: 'x' is no int"),
        (b"name: a\nseed: !!timestamp x\n", "mine.yaml:2: no valid YAML: failed to construct timestamp"),
        (b"name: a\nseed: " + b"1" * 5000, "mine.yaml:2: no valid YAML: '1111"),
        (b"name: caf\xe9\n", "not UTF-8 (byte 10)"),
    ],
)
def test_file_that_is_no_experiment_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_experiment(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(caught.value)
    assert expected in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot read the experiment file: No such file"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_resolved_experiment_reads_back_the_same(tmp_path: Path) -> None:
    experiment = load(tmp_path, MINIMAL + "variants: [{name: a, train: {beta: 0.3}}]\n")
    assert Experiment.model_validate(experiment.model_dump(mode="json")) == experiment


@pytest.mark.parametrize("field", ["perspective_url: '{}'", "openai: {{url: '{}'}}"])
@pytest.mark.parametrize(
    "address",
    [
        "https://user:hidden@host/v1", "https://hidden@host/", "https://host/v1?key=hidden", "https://host/#hidden",
        "user:hidden@host", "127.0.0.1:8000", "host.example", "ftp://hidden@host/", "https://", "https://host:hidden/", "https://[hidden",
    ],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_key_is_refused_and_not_repeated(
    tmp_path: Path, field: str, address: str
) -> None:
    message = refused(tmp_path, f"{MINIMAL}score: {{{field.format(address)}}}\n")
    assert "hidden" not in message
    assert "score.perspective_url: " in message or "score.openai.url: " in message
    assert len(message.splitlines()) == 1


def test_an_address_in_the_place_of_a_section_is_not_repeated(tmp_path: Path) -> None:
    message = refused(tmp_path, MINIMAL, "--score.openai", "https://user:hidden@host/v1")
    assert "score.openai: Input should be a valid dictionary" in message
    assert "hidden" not in message


def test_addresses_of_services_are_taken_as_they_are(tmp_path: Path) -> None:
    for address in ("http://127.0.0.1:8080", "https://host.example/v1/", "http://[::1]:80/@team/v1"):
        experiment = load(tmp_path, MINIMAL, "--score.perspective-url", address, "--score.openai.url", address)
        assert (experiment.score.perspective_url, experiment.score.openai.url) == (address, address)


SEVERAL = "score: [{scorer: embedding}, {scorer: guard, guard: {model: {id: org/Guard-0.6B}}}]\n"


def test_a_list_of_one_scorer_is_the_same_as_its_section(tmp_path: Path) -> None:
    listed, plain = (load(tmp_path, f"{MINIMAL}score: {text}\n") for text in ("[{scorer: dummy}]", "{scorer: dummy}"))
    assert listed == plain
    assert listed.model_dump(mode="json")["score"]["scorer"] == "dummy"


def test_several_scorers_have_names_and_are_dumped_as_one_list(tmp_path: Path) -> None:
    text = MINIMAL + SEVERAL.replace("}}}]", "}}}, {scorer: embedding, calibration: c.json}]")
    experiment = load(tmp_path, text, "--score.execution.num-actors", "2")
    assert experiment.scorer_names == ["embedding", "guard-Guard-0.6B", "embedding-2"]
    assert [section.execution.num_actors for section in experiment.scores] == [2, None, None]
    assert experiment.score_section("embedding-2").calibration == "c.json"
    dumped = experiment.model_dump(mode="json")
    assert [section["scorer"] for section in dumped["score"]] == ["embedding", "guard", "embedding"]
    assert Experiment.model_validate(dumped) == experiment
    with pytest.raises(InputError, match=r"no scorer 'gurad' .*embedding, guard-Guard"):
        experiment.score_section("gurad")


def test_scorers_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    options = ["--score", "qwen3guard-0.6b", "--score.execution.num-actors", "3", "--score", "embedding"]
    experiment = load(tmp_path, MINIMAL + SEVERAL, *options)
    assert [section.scorer for section in experiment.scores] == ["guard", "embedding"]
    assert [section.execution.num_actors for section in experiment.scores] == [3, None]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("[]", "score: the list is empty"),
        ("[{}, {}]", "score.1: the scorer embedding is listed twice"),
        ("[{}, {execution: {num_actors: 2}}]", "score.1: the scorer embedding is listed twice"),
        ("[{scorer: dummy}, {scorer: gard}]", "score.1.scorer: Input should be"),
        ("[{scorer: gard}, {}]", "score.0.scorer: Input should be"),
        ("[{}, {scorer: dummy, calibraton: a}]", "unknown key 'score.1.calibraton'; did you mean 'calibration'?"),
        ("[{}, {scorer: dummy, attributes: [insult]}]", "score.1.attributes: dummy does not score toxicity"),
        ("[embedding, {}]", "score.0: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_list_of_scorers_is_refused(tmp_path: Path, section: str, expected: str) -> None:
    assert expected in refused(tmp_path, f"{MINIMAL}score: {section}\n")


def test_one_scorer_in_the_place_of_several_is_refused(tmp_path: Path) -> None:
    for options in (["--score.scorer", "dummy"], ["--score", "embedding"]):
        with pytest.raises(InputError, match=r"score\.scorer: .*one of several scorers \(embedding, guard\)"):
            load(tmp_path, MINIMAL + SEVERAL, *options)
    assert "unknown key 'other_scores'" in refused(tmp_path, MINIMAL + "other_scores: []\n")
