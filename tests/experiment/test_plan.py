"""What an experiment refuses before it spends or marks anything, and what makes another experiment of it."""

import json
import shutil
from pathlib import Path

import pytest

from xgray.config import Experiment
from xgray.errors import ConflictError, InputError, StageError
from xgray.experiment.checks import check_heads
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.experiment.stages import intervene
from xgray.runs.manifest import StageResult


@pytest.fixture
def experiment(tmp_path, tiny_model):
    def make(**sections):
        required = {"name": "e", "runs": str(tmp_path / "runs"), "model": {"id": tiny_model}, "languages": ["en"]}
        return Experiment.model_validate({**required, **sections})

    return make


def test_english_prompts_are_not_taken_from_a_file_of_another_language(experiment, tmp_path):
    """Without a Locale nothing in the file says that it is German."""
    file = tmp_path / "german.jsonl"
    file.write_text(json.dumps({"Prompt": "Du bist"}) + "\n")
    sections = {"prompts": {"path": str(file)}, "probe": {}}
    with pytest.raises(InputError, match=r"vectors .* English prompts, .*german\.jsonl, of de prompts.*RTP_LX_EN"):
        make_plan(experiment(**sections, languages=["de"], vectors={}))
    make_plan(experiment(**sections, languages=["de"]))
    make_plan(experiment(**sections, languages=["en"], vectors={}))
    make_plan(experiment(probe={}, vectors={}, languages=["de"]))  # a folder, which has English beside German


@pytest.mark.parametrize(
    ("stages", "sections", "message"),
    [
        (("generate", "intervene"), {}, "intervene: the experiment has no section intervene; add it: 'intervene: {}'"),
        (("retrieve",), {}, "retrieve: the experiment has no section retrieve"),
        (("transfer",), {}, "transfer: the experiment has no section retrieve"),
        (("transfer",), {"retrieve": {}, "languages": ["de"]}, "transfer: the experiment has no variant"),
    ],
)
def test_a_stage_that_is_not_there_is_refused(experiment, tmp_path, stages, sections, message):
    with pytest.raises(InputError, match=message):
        run_experiment(make_plan(experiment(variants=[], **sections)), stages)
    assert not (tmp_path / "runs").exists()


def test_a_given_neuron_outside_the_model_is_refused_before_anything_is_spent(experiment, tmp_path):
    plan = make_plan(experiment(probe={}, vectors={"given": [[0, 1], [99, 0]]}))
    with pytest.raises(InputError, match=r"vectors\.given: no neuron \[99, 0\]: the model has 2 layers of 128"):
        run_experiment(plan)
    assert not (tmp_path / "runs").exists()


def write_pairs(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_messages_for_a_model_without_a_chat_template_are_refused_before_anything_is_spent(
    experiment, tmp_path, tiny_model
):
    row = {
        name: [{"role": role, "content": name}]
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    }
    train = {"pairs": write_pairs(tmp_path / "chats.jsonl", row), "max_length": 128}
    with pytest.raises(InputError, match=r"released knows no chat template.*train\.chat_template: false"):
        run_experiment(make_plan(experiment(train={**train, "tokenization": "released"})), ["train"])
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(
        InputError, match=r"chats\.jsonl holds messages.* no chat template.*train\.chat_template: false"
    ):
        run_experiment(make_plan(experiment(train=train, model={"id": str(copy)})), ["train"])
    assert not (tmp_path / "runs").exists()


def test_the_languages_of_the_pairs_make_another_training(experiment, tmp_path):
    rows = [{"prompt": "So", "chosen": f" {code}", "rejected": " no", "language": code} for code in ("de", "fr")]
    pairs = write_pairs(tmp_path / "pairs.jsonl", *rows)

    def payload(**train):
        return make_plan(experiment(train={"pairs": pairs, **train})).stage("train", "dpo").payload

    german, french, whole = payload(languages=["de"]), payload(languages=["fr"]), payload()
    assert len({payload["inputs"]["pairs"] for payload in (german, french, whole)}) == 3
    assert german["section"]["languages"] == ["de"]
    assert not {"languages", "chat_template"} & whole["section"].keys(), "as runs from before these fields have it"


@pytest.mark.parametrize(("size", "is_refused"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_tensor_parallelism_that_does_not_divide_the_heads_is_refused(experiment, size, is_refused):
    plan = make_plan(experiment(generate={"execution": {"engine": "vllm", "tensor_parallel": size}}))
    if is_refused:
        with pytest.raises(InputError, match=rf"tensor_parallel: {size} GPUs cannot share the 2 attention heads"):
            check_heads(plan, plan.stages)
    else:
        check_heads(plan, plan.stages)


def test_neurons_of_a_checkpoint_with_quantized_activations_are_refused(experiment, tmp_path, tiny_model):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "fp8"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config))
    sections = {"intervene": {"neurons": [[0, 1]]}, "generate": {"execution": {"engine": "vllm"}}}
    plan = make_plan(experiment(model={"id": str(folder)}, **sections))
    with pytest.raises(InputError, match=r"the activations of .* are quantized \(fp8\)"):
        intervene.check(plan, plan.stage("intervene"))


def test_mlps_of_an_unknown_kind_are_refused_before_anything_is_spent(experiment, tmp_path, tiny_model):
    from transformers import OPTConfig, OPTForCausalLM

    from xgray.models.load import load_tokenizer

    folder, tokenizer = tmp_path / "opt", load_tokenizer(tiny_model)
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), word_embed_proj_dim=16, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="MLPs of a OPTForCausalLM are not known"):
        run_experiment(make_plan(experiment(model={"id": str(folder)}, probe={})))
    assert not (tmp_path / "runs").exists()


def test_features_of_another_protocol_are_not_taken_for_these(experiment):
    """They are taken at another place of the network; the stage's fingerprint is theirs."""
    stages = [make_plan(experiment(probe={"protocol": name})).stage("probe") for name in ("corrected", "released")]
    assert stages[0].fingerprint != stages[1].fingerprint


def finished(plan):
    """Leave the run as if all of its stages were finished."""
    for stage in plan.stages:
        stage.begin()
        stage.finish(StageResult())
    plan.run.write_bytes("experiment.yaml", b"as it was")


def files(plan):
    return {path: path.read_bytes() for path in plan.run.local.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", ["report", "retrieve"])
@pytest.mark.parametrize("force", [False, True])
def test_a_change_of_a_stage_that_was_not_requested_leaves_the_run_as_it_is(experiment, stage, force):
    sections = {"variants": [], "retrieve": {}, "languages": ["en", "de"]}
    plan = make_plan(experiment(**sections))
    finished(plan)
    (plan.run / stage).delete()
    before = files(plan)
    with pytest.raises(ConflictError, match=r"evaluate of another configuration: section\.threshold 0\.5 -> 0\.6"):
        run_experiment(make_plan(experiment(**sections, evaluate={"threshold": 0.6})), (stage,), force)
    assert files(plan) == before


def test_a_stage_that_is_needed_is_missed_before_anything_is_deleted(experiment):
    plan = make_plan(experiment(variants=[]))
    finished(plan)
    plan.stage("evaluate").folder.delete()
    plan = make_plan(experiment(variants=[], report={"mask": False}))
    before = files(plan)
    with pytest.raises(InputError, match=r"stage evaluate is not finished in .*; run it first"):
        run_experiment(plan, ("report",))
    assert files(plan) == before


SHORT = {"max_length": 128}
"""What the tiny model reads."""


def test_what_follows_from_a_stage_that_is_made_anew_is_no_conflict(experiment, monkeypatch):
    begun = []
    monkeypatch.setattr("xgray.experiment.driver._run_stages", lambda plan, todo, *rest: begun.extend(todo))
    finished(make_plan(experiment(train=SHORT)))
    plan = make_plan(experiment(train=SHORT, variants=[{"name": "dpo"}, {"name": "second", "train": {"beta": 0.2}}]))
    run_experiment(plan, ("train",))
    assert [stage.label for stage in begun] == ["train/second"]
    plan = make_plan(experiment(train={**SHORT, "beta": 0.3}))
    run_experiment(plan, ("train",), force=True)
    assert [stage.label for stage in begun] == ["train/second", "train/dpo"]


def test_rows_of_a_finished_stage_that_were_deleted_are_missed(experiment):
    """The manifest counts them; without them the report would show less, and not say so."""
    for stage in make_plan(experiment(variants=[])).stages:
        stage.begin()
        stage.finish(StageResult({"num_prompts": 2}))
    plan = make_plan(experiment(variants=[], report={"mask": False}))
    before = files(plan)
    with pytest.raises(StageError, match=r"score/base/rows: 0 rows, but stage score/base finished with 2.*manifest"):
        run_experiment(plan, ("report",))
    assert files(plan) == before


def test_force_keeps_old_results_where_no_cluster_answers(experiment):
    finished(make_plan(experiment(variants=[])))
    plan = make_plan(experiment(variants=[], evaluate={"threshold": 0.6}))
    plan.stage("evaluate").folder.write_bytes("metrics.json", b"hours of work")
    before = files(plan)
    with pytest.raises(InputError, match="--address: 'nonsense' is not the address"):
        run_experiment(plan, ("evaluate",), force=True, address="nonsense")
    assert files(plan) == before


def test_a_report_that_cannot_be_made_leaves_the_last_one(experiment):
    finished(make_plan(experiment(variants=[])))
    plan = make_plan(experiment(variants=[], report={"mask": False}))
    plan.stage("report").folder.write_bytes("index.html", b"the last page")
    plan.stage("evaluate").folder.write_bytes("metrics.json", b'{"languages": 1}')
    with pytest.raises(StageError, match="damaged"):
        run_experiment(plan, ("report",))
    assert plan.stage("report").folder.read_bytes("index.html") == b"the last page"
