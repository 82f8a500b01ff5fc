"""A checkpoint is loaded whole or refused by name, whatever loads it; one small model, changed in many ways."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.score.tiny_classifier import tiny_classifier
from tests.train.tiny import make_tiny_model
from xgray.config import Generate, Model, Train
from xgray.errors import InputError
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights
from xgray.models.complete import check_adapter
from xgray.models.load import (
    check_device,
    check_loadable,
    load_causal_lm,
    load_config,
    load_guard,
    load_sequence_classifier,
    load_skeleton,
    load_tokenizer,
)
from xgray.models.source import folder_fingerprint, local_weights, model_fingerprint, resolve
from xgray.storage.fingerprint import file_fingerprint
from xgray.train.encoder.model import load_encoder
from xgray.train.export import export

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Path(make_tiny_model(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def changed(whole, tmp_path, monkeypatch):
    """Return a function that copies the model with other weights, and returns the copy's folder."""
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))

    def change(edit=dict, folder=whole):
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        save_file(edit(load_file(copy / WEIGHTS)), copy / WEIGHTS, {"format": "pt"})
        return copy

    return change


def without_a_layer(weights):
    return {name: tensor for name, tensor in weights.items() if "layers.1." not in name}


def with_another(weights):
    return weights | {"v_head.weight": torch.zeros(1, 32)}


def with_other_shapes(weights):
    return {name: tensor[:, 1:].contiguous() if "down_proj" in name else tensor for name, tensor in weights.items()}


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def partly_prefixed(weights):
    first, *rest = weights
    return {f"module.{name}": weights[name] for name in rest} | {first: weights[first]}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without_a_layer, r"no weights model\.layers\.1\.input_layernorm\.weight, .* and 6 more"),
        (with_another, r"architecture has not: v_head\.weight"),
        (with_other_shapes, r"down_proj\.weight \(stored 32×63, the configuration says 32×64\)"),
        (partly_prefixed, r"no weights .*; .*has not: module\."),
    ],
)
def test_weights_that_are_not_the_architectures_are_refused_by_name(changed, edit, message):
    folder = changed(edit)
    with pytest.raises(InputError, match=message):
        check_loadable(str(folder))
    with pytest.raises(InputError, match=message):
        load_causal_lm(str(folder), "float32")


def train(path):
    from xgray.train.trainer import StartingModel, build_trainer

    build_trainer(StartingModel(path, None, load_tokenizer(path)), Train(), None, None, 0)


def guard_in_vllm(path):
    from xgray.score.vllm_guard import VllmEngine

    VllmEngine(path, Model(id=path), None, None)


def measure_fluency(path):
    from xgray.evaluate.fluency import load_measuring_model

    load_measuring_model(Model(id=path), "causal")


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_guard(path, "float32"),
        lambda path: build_engine("transformers", Weights(path, None, "float32"), Generate()),
        lambda path: build_engine("vllm", Weights(path, None, "float32"), Generate()),
        lambda path: export(path, None, Path(path) / "checkpoint", Path(path) / "out"),
        guard_in_vllm,
        measure_fluency,
        pytest.param(train, marks=pytest.mark.slow),
    ],
    ids=["guard", "transformers", "vllm", "export", "guard in vllm", "fluency", "trainer"],
)
def test_whatever_loads_a_model_refuses_it(changed, load):
    folder = changed(without_a_layer)
    with pytest.raises(InputError, match=r"no weights model\.layers\.1\.input_layernorm\.weight"):
        load(str(folder))
    assert not (folder / "out" / "merged").exists()


@pytest.mark.parametrize(
    "edit",
    [
        prefixed("_orig_mod."),
        prefixed("module."),
        prefixed("module._orig_mod."),
        lambda weights: {name.replace("model.", "model._orig_mod.", 1): tensor for name, tensor in weights.items()},
    ],
)
def test_what_torch_puts_into_names_is_taken_out_and_said(whole, changed, edit, caplog):
    folder = changed(edit)
    for path in (resolve(Model(id=str(folder))), local_weights(str(folder))):  # of the driver, and of any engine
        assert load_file(Path(path) / WEIGHTS).keys() == load_file(whole / WEIGHTS).keys()
    assert "is read as model." in caplog.text
    loaded, expected = load_causal_lm(str(folder), "float32"), load_causal_lm(str(whole), "float32")
    for name, weight in expected.state_dict().items():
        assert weight.equal(loaded.state_dict()[name]), name


def test_buffers_of_older_checkpoints_are_no_weights(changed):
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.masked_bias")
    check_loadable(str(changed(lambda weights: weights | {name: torch.zeros(1) for name in names})))


def test_a_missing_shard_is_named(changed):
    folder = changed()
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    names = {"model.norm.weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InputError, match=r"names 2 files, and model-00002-of-00002\.safetensors is missing"):
        check_loadable(str(folder))


def test_a_model_of_the_hub_is_compared_in_the_hubs_cache(changed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshots = tmp_path / "hub" / "models--made--short" / "snapshots"
    snapshots.mkdir(parents=True)
    changed(without_a_layer).rename(snapshots / ("0" * 40))
    with pytest.raises(InputError, match=r"'made/short': it has no weights model\.layers\.1\."):
        check_loadable("made/short", "0" * 40)
    (snapshots / ("0" * 40) / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"no weights as safetensors.*hf download made/short"):
        check_loadable("made/short", "0" * 40)


def test_pickles_are_refused_with_a_command_that_converts_them(whole, changed):
    folder = changed()
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"a pickle \(pytorch_model\.bin\)") as refusal:
        resolve(Model(id=str(folder)))
    code = re.search(r'python -c "(.*)"$', str(refusal.value))
    exec(code[1], {})
    assert model_fingerprint(Model(id=str(folder))) == model_fingerprint(Model(id=str(whole))), "pickles do not count"
    check_loadable(str(folder))


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_git_lfs_pointers_are_refused_with_the_command_that_fetches_them(changed, name):
    folder = changed()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer.* git -C .* lfs pull"):
        resolve(Model(id=str(folder)))


@pytest.mark.parametrize("content", ["", "{", "[" * 3000, "[]", "3", "\ufeff{}"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_is_named(changed, name, content):
    folder = changed()
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"model\.id: .*{name} is damaged \("):
        resolve(Model(id=str(folder)))


@pytest.mark.parametrize("content", [b"", b"12345678", (200).to_bytes(8, "little") + b"[" * 3000,
                                     (19).to_bytes(8, "little") + b'{"a":{"shape":"x"}}'])  # fmt: skip
def test_a_damaged_header_is_named(changed, content):
    folder = changed()
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"model\.id: .*model\.safetensors does not begin with a safetensors header"):
        resolve(Model(id=str(folder)))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 60, b"garbage!" * 10])
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"^model\.id: .*GGUF file.*x\.gguf.*Copy or download it again|no GGUF file"):
        resolve(Model(id=str(tmp_path / "x.gguf")))


def test_a_model_is_identified_by_weights_configuration_and_tokenizer(whole, changed):
    folder = changed()
    assert folder_fingerprint(folder) == file_fingerprint(whole), "earlier versions hashed all files"
    for name in ("README.md", ".gitattributes", "optimizer.pt", "trainer_state.json", "training_args.bin",
                 ".cache/huggingface/download/config.json.metadata", "global_step5/mp_rank_00_model_states.pt",
                 "modeling_own.py"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    assert model_fingerprint(Model(id=str(folder))) == file_fingerprint(whole)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", WEIGHTS):
        before = folder_fingerprint(folder)
        with (folder / name).open("a") as stream:
            stream.write(" ")
        assert folder_fingerprint(folder) != before, name


def test_code_in_a_models_folder_never_runs(changed, monkeypatch, tmp_path):
    folder = changed()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    load_causal_lm(str(folder), "float32")  # transformers has the architecture
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own, "model_type": "own"}))
    with pytest.raises(InputError, match="needs Python code from its own folder, which xgray never runs"):
        load_causal_lm(str(folder), "float32")
    assert not (tmp_path / "ran").exists()


def test_an_encoder_decoder_is_refused(changed):
    folder = changed()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(InputError, match=r"its architecture, t5, is an encoder-decoder"):
        check_loadable(str(folder))


def test_4_bit_weights_need_a_gpu(changed):
    folder = changed()
    config = json.loads((folder / "config.json").read_text())
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": bits}))
    check_device(str(folder), load_config(str(folder)), has_cuda=True)
    with pytest.raises(InputError, match=r"stored in 4 bits \(bitsandbytes\)"):
        check_device(str(folder), load_config(str(folder)), has_cuda=False)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"stored in 4 bits \(bitsandbytes\)"):
            load_causal_lm(str(folder), "float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_classifier(tmp_path_factory.mktemp("encoder"))


def without_the_head(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}


def without_an_encoder_layer(weights):
    return {name: tensor for name, tensor in weights.items() if "layer.1." not in name}


def with_a_pooler(weights):
    return weights | {"roberta.pooler.dense.weight": torch.zeros(64, 64), "lm_head.bias": torch.zeros(3)}


def test_a_new_head_is_drawn_on_a_whole_encoder_alone(changed, encoder):
    folder = changed(without_the_head, encoder)
    load_encoder(str(folder), None, ["toxicity"], seed=0)
    with pytest.raises(InputError, match=r"no weights classifier\."):
        load_sequence_classifier(str(folder), "float32")


@pytest.mark.parametrize("load", [lambda path: load_encoder(path, None, ["toxicity"], seed=0),
                                  lambda path: load_sequence_classifier(path, "float32")])  # fmt: skip
def test_an_encoder_without_a_layer_is_refused(changed, encoder, load):
    with pytest.raises(InputError, match=r"no weights roberta\.encoder\.layer\.1\."):
        load(str(changed(without_an_encoder_layer, encoder)))


def test_a_pooler_that_the_head_reads_must_be_there(changed, tmp_path):
    bert = tiny_classifier(tmp_path / "bert", "bert")
    folder = str(changed(lambda weights: {name: weights[name] for name in weights if "pooler" not in name}, bert))
    with pytest.raises(InputError, match=r"no weights bert\.pooler\.dense\.bias, "):
        load_sequence_classifier(folder, "float32")
    load_encoder(folder, None, ["toxicity"], seed=0)


def test_poolers_that_no_classifier_uses_are_left_out(changed, encoder):
    folder = str(changed(with_a_pooler, encoder))
    load_encoder(folder, None, ["toxicity"], seed=0)
    with pytest.raises(InputError, match=r"architecture has not: lm_head\.bias\."):
        load_sequence_classifier(folder, "float32")


LORA = {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("config", "edit", "message"),
    [
        (LoraConfig(**LORA), dict, None),
        (LoraConfig(r=2, modules_to_save=["lm_head"], target_modules="all-linear", task_type="CAUSAL_LM"), dict, None),
        (LoraConfig(**LORA), lambda weights: dict(list(weights.items())[:-1]), "it has no weights base_model"),
        (LoraConfig(**LORA), with_another, r"no place for v_head\.weight"),
        (IA3Config(task_type="CAUSAL_LM"), dict, "is of the kind IA3"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), dict, "is of the kind PROMPT_TUNING"),
    ],
)
def test_adapters_fit_the_base_model_or_are_refused(whole, tmp_path, config, edit, message):
    get_peft_model(load_causal_lm(str(whole), "float32"), config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(edit(load_file(file)), file, {"format": "pt"})
    if message is None:
        check_adapter(tmp_path, load_skeleton(str(whole)))
        return
    with pytest.raises(InputError, match=message):
        check_adapter(tmp_path, load_skeleton(str(whole)))


def test_an_adapter_after_the_vocabulary_grew_is_refused_with_both_sizes(whole, tmp_path):
    grown = load_causal_lm(str(whole), "float32")
    rows = grown.config.vocab_size
    grown.resize_token_embeddings(rows + 7)
    get_peft_model(grown, LoraConfig(**LORA)).save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(InputError, match=rf"embed_tokens.*adapter .*{rows + 7}.*base model .*{rows}\D"):
        check_adapter(tmp_path, load_skeleton(str(whole)))
