"""A model, its tokenizer and the experiment's lengths fit together, or are refused before anything starts."""

import json
import shutil
from pathlib import Path

import pytest
from peft import IA3Config, get_peft_model
from transformers import AutoTokenizer

from tests.train.tiny import make_tiny_model
from xgray.config import Experiment, Model
from xgray.errors import InputError
from xgray.experiment.checks import check_models
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.experiment.weights import model_weights
from xgray.generate.build import build_engine
from xgray.models.check import added_tokens, check_model, sampling_facts, unfollowed
from xgray.models.load import end_tokens, load_causal_lm, load_config, load_tokenizer
from xgray.models.source import model_fingerprint
from xgray.runs.manifest import StageResult
from xgray.storage.fingerprint import file_fingerprint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Path(make_tiny_model(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def changed(whole, tmp_path):
    """A copy of the model, and a function that changes fields of one of its JSON files."""
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))

    def change(name, **fields):
        file = copy / name
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | fields))
        return copy

    return change


@pytest.fixture
def experiment(tmp_path):
    def make(model, **sections):
        required = {"name": "e", "runs": str(tmp_path / "runs"), "model": {"id": str(model)}, "languages": ["en"]}
        quick = {
            "generate": {"execution": {"engine": "transformers"}},
            "score": {"scorer": "dummy", "unvalidated_languages": True},
            "variants": [],
        }
        return Experiment.model_validate({**required, **quick, **sections})

    return make


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eos_token": None}, "names no end-of-text token"),
        ({"pad_token": "<more>"}, r"its pad_token '<more>' has the id \d+, but the embedding has \d+ rows"),
        ({"eos_token": "<more>"}, r"its eos_token '<more>' has the id"),
    ],
)
def test_special_tokens_that_the_model_cannot_read_are_refused(changed, fields, message):
    with pytest.raises(InputError, match=message):
        check_model(Model(id=str(changed("tokenizer_config.json", **fields))))


def test_a_tokenizer_that_ends_every_text_is_refused_and_a_beginning_is_recorded(changed):
    from tokenizers.processors import TemplateProcessing

    folder = changed("config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = [("<s>", 0), ("</s>", 1)]
    for template, added in (("<s> $A", (["<s>"], [])), ("<s> $A </s>", (["<s>"], ["</s>"]))):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
        tokenizer.save_pretrained(folder)
        assert added_tokens(load_tokenizer(str(folder))) == added
        if not added[1]:
            check_model(Model(id=str(folder)))
            assert sampling_facts(str(folder), None, tokenizer)["texts_begin_with"] == ["<s>"]
    with pytest.raises(InputError, match=r"ends every text with </s>.* add_eos_token"):
        check_model(Model(id=str(folder)))


def test_a_damaged_tokenizer_is_named(changed):
    folder = changed("config.json")
    (folder / "tokenizer.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"cannot read the tokenizer of .*copy"):
        check_model(Model(id=str(folder)))


def without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder


def test_a_checkpoint_without_a_tokenizer_takes_the_bases_and_a_base_model_needs_one(whole, changed, experiment):
    folder = without_tokenizer(changed("config.json"))
    with pytest.raises(InputError, match=r"has no tokenizer .*save_pretrained"):
        check_model(Model(id=str(folder)))
    plan = make_plan(experiment(whole, variants=[{"name": "mine", "checkpoint": str(folder)}]))
    check_models(plan, plan.stages, force=False)
    weights, _ = model_weights(plan, "mine")
    assert weights.tokenizer_source == (str(whole), None)
    engine = build_engine("transformers", weights, plan.experiment.generate)
    assert engine.sample(["The baker"], [1], None)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"variants": [{"name": "dpo"}], "train": {"max_length": 257}}, r"^train\.max_length: .* 256 at most"),
        (
            {"variants": [{"name": "long", "train": {"max_length": 300}}]},
            r"^variants\.long\.train\.max_length: .* 256 at most",
        ),
        (
            {"generate": {"max_new_tokens": 256, "execution": {"engine": "transformers"}}},
            r"^generate\.max_new.* 255 at",
        ),
    ],
)
def test_lengths_beyond_the_models_positions_are_refused(whole, experiment, sections, message):
    plan = make_plan(experiment(whole, **sections))
    with pytest.raises(InputError, match=message):
        check_models(plan, plan.stages, force=False)
    fitting = make_plan(experiment(whole, variants=[{"name": "dpo"}]))  # 256 tokens and no more
    check_models(fitting, fitting.stages, force=False)


def test_a_run_refuses_a_model_before_it_begins_and_names_the_field(whole, changed, experiment, tmp_path):
    get_peft_model(load_causal_lm(str(whole), "float32"), IA3Config(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "ia3"
    )
    broken = changed("config.json", num_hidden_layers=3)
    for sections, message in (
        ({"model": broken}, r"^model\.id: .*no weights model\.layers\.2\."),
        ({"variants": [{"name": "mine", "checkpoint": str(broken)}]}, r"^variants\.mine\.checkpoint: .*layers\.2"),
        ({"variants": [{"name": "mine", "checkpoint": str(tmp_path / "ia3")}]}, r"^variants\.mine\.ch.* kind IA3"),
        ({"evaluate": {"fluency": {"model": {"id": str(broken)}}}}, r"^evaluate\.fluency\.model: .*layers\.2\."),
        ({"evaluate": {"fluency": {"kind": "seq2seq"}}}, r"^model\.id: .*"),
    ):
        with pytest.raises(InputError, match=message):
            run_experiment(make_plan(experiment(**{"model": whole, **sections})))
    assert not list((tmp_path / "runs").rglob("pending.json")), "no stage has begun"


def test_a_run_of_a_folder_with_other_files_that_an_earlier_version_finished_stays_finished(changed, experiment):
    folder = changed("README.md")  # which earlier versions hashed too
    planned = make_plan(experiment(folder)).stage("generate", "base")
    earlier = file_fingerprint(folder)
    assert planned.payload["inputs"]["model"] == model_fingerprint(Model(id=str(folder))) != earlier
    payload = {**planned.payload, "inputs": {**planned.payload["inputs"], "model": earlier}}
    planned.place.begin(payload)
    planned.place.finish(payload, StageResult())
    assert make_plan(experiment(folder)).stage("generate", "base").is_finished
    changed("config.json", pad_token_id=0)
    assert not make_plan(experiment(folder)).stage("generate", "base").is_finished


GENERATION = {
    "repetition_penalty": 1.8,
    "temperature": 0.1,
    "top_k": 1,
    "suppress_tokens": [5, 6, 7, 8, 9],
    "no_repeat_ngram_size": 1,
    "eos_token_id": [1, 30, 31, 32, 33, 34],
}


def test_a_generation_config_is_recorded_and_marks_texts_that_followed_it(whole, changed, experiment):
    plain = make_plan(experiment(whole)).stage("generate", "base").payload
    assert unfollowed(Model(id=str(whole))) == {}
    assert "generation_config" not in plain, "the fingerprints of earlier runs stay"
    folder = changed("generation_config.json", **GENERATION)
    assert unfollowed(Model(id=str(folder))).keys() == GENERATION.keys() - {"temperature", "top_k"}
    assert "generation_config" in make_plan(experiment(folder)).stage("generate", "base").payload
    tokenizer = load_tokenizer(str(folder))
    assert sampling_facts(str(folder), None, tokenizer)["not_followed"].items() >= GENERATION.items()
    assert end_tokens(load_config(str(folder)), tokenizer) == [1]
