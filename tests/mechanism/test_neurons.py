"""Neurons, value vectors and edits, against a network computed by hand and each architecture's own arithmetic."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, OPTConfig, OPTForCausalLM

from benchmarks.reference.measurements import all_neurons, captured, layer_differences
from benchmarks.reference.tiny_models import CONFIGS, make_model
from xgray.errors import InputError
from xgray.mechanism.neurons import (
    Edit,
    activation_quantization,
    capturing,
    check_editable,
    check_neurons,
    down_projections,
    edited,
    value_vectors,
)

IDS = torch.tensor([[5, 17, 200, 33, 9], [1, 2, 3, 4, 5]])
CHOSEN = [(layer, index) for layer in range(3) for index in (40, 3, 11)]


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"down_proj": torch.nn.Linear(3, 2)})

    def forward(self, activations):
        return self.mlp["down_proj"](activations)


def test_captured_and_edited_activations_of_a_network_computed_by_hand():
    model = torch.nn.Sequential(torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Layer()])}))
    layer = model[0]["layers"][0]
    projection = layer.mlp["down_proj"]
    projection.weight.data = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    projection.bias.data = torch.tensor([0.5, -0.5])
    assert down_projections(model) == [projection]
    assert value_vectors(projection).tolist() == [[1, 10], [2, 20], [3, 30]]
    captured_values = {}
    activations = torch.tensor([[1.0, -1.0, 2.0]])
    with (
        torch.no_grad(),
        capturing(model, [(0, 2), (0, 0)], lambda columns, values: captured_values.update({tuple(columns): values})),
    ):
        assert layer(activations).tolist() == [[1 - 2 + 6 + 0.5, 10 - 20 + 60 - 0.5]]
        with edited(model, Edit(((0, 2),), offset=-1, multiplier=0.5)):  # 2 becomes 0
            assert layer(activations).tolist() == [[1 - 2 + 0.5, 10 - 20 - 0.5]]
    assert captured_values[0, 1].tolist() == [[2, 1]]
    assert activations.tolist() == [[1, -1, 2]]
    assert not projection._forward_pre_hooks


@pytest.mark.parametrize("kind", CONFIGS)
def test_activations_times_value_vectors_are_what_a_layer_adds_to_the_residual_stream(kind):
    activations, stream = layer_differences(kind, make_model(kind), IDS)
    assert activations < 1e-5
    assert stream < 1e-5


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_offset_of_0_changes_no_bit_and_ablation_equals_a_value_vector_of_zeros(kind):
    model = make_model(kind)
    plain, logits = captured(model, all_neurons(model), input_ids=IDS)
    with edited(model, Edit(tuple(CHOSEN), offset=0.0)):
        same, unchanged = captured(model, all_neurons(model), input_ids=IDS)
    # Compared as integers, because 0 and -0 are equal as floats.
    assert torch.equal(same.view(torch.int32), plain.view(torch.int32))
    assert torch.equal(unchanged.view(torch.int32), logits.view(torch.int32))
    with torch.no_grad():
        with edited(model, Edit(tuple(CHOSEN), multiplier=0.0)):
            ablated = model(input_ids=IDS).logits
        for layer, index in CHOSEN:
            value_vectors(down_projections(model)[layer])[index] = 0
        torch.testing.assert_close(model(input_ids=IDS).logits, ablated, atol=1e-5, rtol=1e-4)
    assert (ablated - logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CONFIGS)
def test_batching_padding_side_and_precision_change_activations_within_tolerance(kind):
    model = make_model(kind)
    short = IDS[1:, :3]
    alone, _ = captured(model, CHOSEN, input_ids=short)
    for side in ("left", "right"):
        tokens = slice(2, 5) if side == "left" else slice(0, 3)
        ids, mask = IDS.clone(), torch.ones_like(IDS)
        ids[1], mask[1] = 0, 0
        ids[1, tokens], mask[1, tokens] = short[0], 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        result, _ = captured(model, CHOSEN, input_ids=ids, attention_mask=mask, position_ids=positions)
        torch.testing.assert_close(result[1:, tokens], alone, atol=1e-5, rtol=1e-4)
    half, _ = captured(model.to(torch.bfloat16), CHOSEN, input_ids=short)
    assert (half.float() - alone).abs().max() < 0.1 * alone.abs().max()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_with_an_adapter_has_the_neurons_and_value_vectors_of_the_merged_model(kind):
    model = get_peft_model(
        make_model(kind),
        LoraConfig(r=4, lora_alpha=8, target_modules=["c_proj", "down_proj"], init_lora_weights=False),
    ).eval()
    adapted, logits = captured(model, CHOSEN, input_ids=IDS)
    with_adapter = [value_vectors(projection).detach().clone() for projection in down_projections(model)]
    with model.disable_adapter():
        without_adapter = [value_vectors(projection).detach().clone() for projection in down_projections(model)]
    with torch.no_grad(), edited(model, Edit(tuple(CHOSEN), offset=2.0)):
        edited_logits = model(input_ids=IDS).logits
    merged = model.merge_and_unload()
    result, expected = captured(merged, CHOSEN, input_ids=IDS)
    torch.testing.assert_close(adapted, result, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    for projection, vectors, base_vectors in zip(down_projections(merged), with_adapter, without_adapter, strict=True):
        torch.testing.assert_close(value_vectors(projection), vectors)
        assert not torch.equal(vectors, base_vectors)
    with torch.no_grad(), edited(merged, Edit(tuple(CHOSEN), offset=2.0)):
        torch.testing.assert_close(merged(input_ids=IDS).logits, edited_logits, atol=1e-4, rtol=1e-4)


def test_an_unknown_mlp_is_refused():
    config = OPTConfig(hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16)
    with pytest.raises(InputError, match=r"MLPs of a OPTForCausalLM are not known: .*mlp\.down_proj.*DOWN_PROJECTIONS"):
        down_projections(OPTForCausalLM(config))


def test_two_stacks_of_layers_are_refused():
    stack = torch.nn.ModuleDict({"text": torch.nn.ModuleList([Layer()]), "images": torch.nn.ModuleList([Layer()])})
    with pytest.raises(InputError, match="in layers 0, 0"):
        down_projections(stack)


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([(0, 1), (3, 0)], r"section: no neuron \[3, 0\]: the model has 3 layers of 48 neurons"),
        ([(0, 48)], r"section: no neuron \[0, 48\]"),
        ([(0, -1)], r"section: no neuron \[0, -1\]"),
        ([(0, 1), (1, 1), (0, 1)], r"section: neuron \[0, 1\] is listed twice"),
    ],
)
def test_neurons_outside_the_model_and_repeated_ones_are_refused(neurons, message):
    model = make_model("llama")
    check_neurons([(0, 0), (2, 47)], model, "section")
    with pytest.raises(InputError, match=message):
        check_neurons(neurons, model, "section")


COMPRESSED = {"quant_method": "compressed-tensors", "format": "int-quantized"}
WEIGHTS = {"num_bits": 8, "type": "int"}


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        (None, None),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, None),
        ({"quant_method": "gptq", "bits": 4}, None),
        (COMPRESSED | {"config_groups": {"group_0": {"weights": WEIGHTS, "input_activations": None}}}, None),
        (
            COMPRESSED | {"config_groups": {"group_0": {"weights": WEIGHTS, "input_activations": {"num_bits": 8}}}},
            "compressed-tensors",
        ),
        ({"quant_method": "quark", "global_quant_config": {"input_tensors": {"dtype": "fp8_e4m3"}}}, "quark"),
        ({"quant_method": "quark", "global_quant_config": {"input_tensors": None}}, None),
    ],
)
def test_a_checkpoint_whose_activations_are_quantized_is_not_edited(quantization, method):
    config = LlamaConfig()
    if quantization is not None:
        config.quantization_config = quantization
    assert activation_quantization(config) == method
    if method is None:
        check_editable(config, "made/model")
    else:
        with pytest.raises(InputError, match=rf"the activations of made/model are quantized \({method}\)"):
            check_editable(config, "made/model")
