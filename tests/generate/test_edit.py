"""Neurons edited while an engine samples: the effect on texts, which is the same with both engines."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from xgray.config import Generate
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights
from xgray.mechanism.neurons import Edit, down_projections, install, value_vectors
from xgray.models.load import load_causal_lm, load_tokenizer

PROMPTS = ["The weather in the north", "A", "Bonjour, je suis"]
SEEDS = [11, 12, 13]
GREEDY = Generate(k=1, max_new_tokens=8, temperature=0)
NEURONS = ((0, 3), (0, 100), (1, 7), (1, 127))
HALF = tuple((layer, index) for layer in (0, 1) for index in range(0, 128, 2))
EDITS = [Edit(NEURONS, offset=-5.0), Edit(HALF, multiplier=0.0), Edit(NEURONS, offset=2.5)]


@pytest.fixture(scope="session")
def architectures(tiny_model, tmp_path_factory):
    """Folders of tiny models with two layers of 128 neurons, of three architectures with different MLPs."""
    tokenizer = load_tokenizer(tiny_model)
    common = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    common |= {"eos_token_id": tokenizer.eos_token_id}
    models = {
        "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=64, n_inner=128, n_layer=2, n_head=2, n_positions=128, **common)),
        "bloom": (BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=2, **common)),
    }
    folders = {"llama": tiny_model}
    for name, (kind, config) in models.items():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in {*model.parameters()} - {*model.get_input_embeddings().parameters()}:
            parameter.data.mul_(12)  # otherwise the tied embeddings repeat the last token
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def texts(engine, edit):
    engine.edit(edit)
    return [sample.text for (sample,) in engine.sample(PROMPTS, SEEDS, None)]


def start_engine(name, folder):
    return build_engine(name, Weights(folder, None, "float32", edits_neurons=True), GREEDY)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_edit_changes_texts_until_it_ends_or_another_replaces_it(architectures, architecture):
    engine = start_engine("transformers", architectures[architecture])
    plain = texts(engine, None)
    edited = [texts(engine, edit) for edit in EDITS]
    assert all(texts_of_edit != plain for texts_of_edit in edited)
    assert texts(engine, None) == plain
    assert texts(engine, EDITS[0]) == edited[0]  # the edits do not add up


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_ablation_equals_value_vectors_of_zeros(architectures, architecture, tmp_path):
    folder = architectures[architecture]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer, index in HALF:
            value_vectors(down_projections(model)[layer])[index] = 0
    model.save_pretrained(tmp_path)
    load_tokenizer(folder).save_pretrained(tmp_path)
    ablated = texts(start_engine("transformers", folder), Edit(HALF, multiplier=0.0))
    assert ablated == texts(start_engine("transformers", str(tmp_path)), None)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_offset_of_0_changes_neither_logits_nor_texts(architectures, architecture):
    folder = architectures[architecture]
    model = load_causal_lm(folder, "float32")
    ids = load_tokenizer(folder)("The weather in the north", return_tensors="pt").input_ids.to(model.device)
    with torch.inference_mode():
        before = model(ids).logits
        hooks = install(model, Edit(NEURONS, offset=0.0))
        assert torch.equal(model(ids).logits, before)
        for hook in hooks:
            hook.remove()
        install(model, Edit(NEURONS, offset=-5.0))
        assert not torch.equal(model(ids).logits, before)
    engine = start_engine("transformers", folder)
    assert texts(engine, Edit(NEURONS, offset=0.0)) == texts(engine, None)


def test_each_tensor_parallel_process_edits_its_part_of_the_neurons():
    edit = Edit(((0, 0), (0, 63), (0, 64), (1, 127), (1, 64)), offset=-1.0)
    assert edit.local_part(0, [64, 64]) == Edit(((0, 0), (0, 63)), offset=-1.0)
    assert edit.local_part(1, [64, 64]) == Edit(((0, 0), (1, 63), (1, 0)), offset=-1.0)
    assert edit.local_part(0, [128, 128]) == edit


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # vLLM on a CPU has no heads as small as this BLOOM's
def test_vllm_writes_what_transformers_writes(architectures, architecture):
    engine, reference = (start_engine(name, architectures[architecture]) for name in ("vllm", "transformers"))
    plain = texts(engine, None)
    assert plain == texts(reference, None)
    assert texts(engine, Edit(NEURONS, offset=0.0)) == plain
    for edit in EDITS:
        assert texts(engine, edit) == texts(reference, edit), edit
        assert texts(engine, edit) != plain, edit
    assert texts(engine, None) == plain
