"""Neurons edited while an engine samples: what it does to the texts, and that both engines do the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from xgray.config import Generate
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights
from xgray.mechanism.neurons import Edit, down_projections, value_vectors
from xgray.models.load import load_tokenizer

PROMPTS = ["The weather in the north", "A", "Bonjour, je suis"]
SEEDS = [11, 12, 13]
GREEDY = Generate(k=1, max_new_tokens=8, temperature=0)
NEURONS = ((0, 3), (0, 100), (1, 7), (1, 127))
HALF = tuple((layer, index) for layer in (0, 1) for index in range(0, 128, 2))
PUSHES = [Edit(NEURONS, offset=-5.0), Edit(HALF, multiplier=0.0), Edit(NEURONS, offset=2.5)]


@pytest.fixture(scope="session")
def architectures(tiny_model, tmp_path_factory):
    """Folders of tiny models with 128 neurons in each of two layers, whose MLPs are built in three ways."""
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
            parameter.data.mul_(12)  # tied embeddings alone would repeat the last token
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def texts(engine, edit):
    engine.edit(edit)
    return [one.text for (one,) in engine.sample(PROMPTS, SEEDS, None)]


def engine_of(name, folder, section=GREEDY):
    return build_engine(name, Weights(folder, None, "float32", edits_neurons=True), section)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_an_edit_changes_texts_until_it_is_taken_back(architectures, architecture):
    engine = engine_of("transformers", architectures[architecture])
    plain = texts(engine, None)
    pushed = [texts(engine, edit) for edit in PUSHES]
    assert all(one != plain for one in pushed)
    assert texts(engine, None) == plain
    assert texts(engine, PUSHES[0]) == pushed[0]  # not twice as far


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_ablation_is_a_value_vector_of_zeros(architectures, architecture, tmp_path):
    folder = architectures[architecture]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer, index in HALF:
            value_vectors(down_projections(model)[layer])[index] = 0
    model.save_pretrained(tmp_path)
    load_tokenizer(folder).save_pretrained(tmp_path)
    ablated = texts(engine_of("transformers", folder), Edit(HALF, multiplier=0.0))
    assert ablated == texts(engine_of("transformers", str(tmp_path)), None)


def test_an_offset_of_0_leaves_every_logit_as_it_is(architectures):
    for folder in architectures.values():
        engine = engine_of("transformers", folder)
        ids = load_tokenizer(folder)("The weather in the north", return_tensors="pt").input_ids
        with torch.inference_mode():
            before = engine._model(ids).logits
            engine.edit(Edit(NEURONS, offset=0.0))
            assert torch.equal(engine._model(ids).logits, before)
            engine.edit(Edit(NEURONS, offset=-5.0))
            assert not torch.equal(engine._model(ids).logits, before)


def test_tensor_parallel_processes_share_the_neurons_out():
    edit = Edit(((0, 0), (0, 63), (0, 64), (1, 127), (1, 64)), offset=-1.0)
    assert edit.local_part(0, [64, 64]) == Edit(((0, 0), (0, 63)), offset=-1.0)
    assert edit.local_part(1, [64, 64]) == Edit(((0, 0), (1, 63), (1, 0)), offset=-1.0)
    assert edit.local_part(0, [128, 128]) == edit


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # vLLM on a CPU has no heads as small as this BLOOM's
def test_vllm_writes_what_transformers_writes(architectures, architecture):
    engine, reference = (engine_of(name, architectures[architecture]) for name in ("vllm", "transformers"))
    plain = texts(engine, None)
    assert plain == texts(reference, None)
    assert texts(engine, Edit(NEURONS, offset=0.0)) == plain
    for edit in PUSHES:
        assert texts(engine, edit) == texts(reference, edit), edit
        assert texts(engine, edit) != plain, edit
    assert texts(engine, None) == plain
