"""Packed pairs give the log-probabilities and gradients of padded ones, or padded ones are used."""

import random

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from xgray.train.attention import Layout
from xgray.train.forward import PairForward
from xgray.train.packing import ARRANGEMENTS, Tree
from xgray.train.pairs import TokenizedPair

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 200, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
BLOOM = {"vocab_size": 200, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2}
WINDOW = {"sliding_window": 16}
SHARED = {
    "gpt2": GPT2,
    "bloom": BLOOM,
    "llama": SMALL,
    "cohere": SMALL,
    "cohere2": SMALL | WINDOW,
    "gemma": SMALL,
    "gemma2": SMALL | WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text": SMALL | WINDOW | {"query_pre_attn_scalar": 8},
    "mistral": SMALL | WINDOW,
    "qwen3": SMALL,
}


def make_pairs():
    """Prompts of one token and long ones, a pair above the limit, equal completions, a repeated prompt, no prompt."""
    generator = random.Random(0)

    def ids(number):
        return [generator.randrange(3, 200) for _ in range(number)]

    lengths = ((5, 7, 9), (1, 1, 2), (30, 40, 3), (12, 60, 70), (40, 100, 90), (200, 100, 5))
    pairs = [TokenizedPair(*map(ids, each)) for each in lengths]
    pairs.append(TokenizedPair(pairs[0].prompt_ids, ids(6), ids(3)))
    pairs.append(TokenizedPair(ids(4), [8, 9], [8, 9]))
    pairs.append(TokenizedPair([], ids(5), ids(4), 1, 2))
    return pairs


def make_model(kind, fields):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def compute(model, forward, arrangement, pairs, weights):
    """Return the log-probabilities and the gradient of DPO's loss with a reference of 0."""
    forward.arrangement = arrangement
    model.zero_grad()
    with forward.computing(pairs, CPU) as batch:
        log_probs = batch.log_probs(model)
        chosen, rejected = log_probs.chunk(2)
        (-logsigmoid(0.1 * (chosen - rejected)) * weights).sum().backward()
    gradient = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return log_probs.detach(), torch.cat(gradient).clone()


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_arrangements_agree_on(kind, checkpointing, monkeypatch):
    model, pairs = make_model(kind, SHARED[kind]), make_pairs()
    if checkpointing:
        model.gradient_checkpointing_enable()
    implementation = model.config._attn_implementation
    forward = PairForward(model, 256)
    forward.choose_arrangement(model, pairs, CPU)
    assert forward.arrangement == "shared"
    weights = torch.linspace(0.5, 1.5, len(pairs))
    with monkeypatch.context() as context:
        context.setattr("xgray.train.forward.KEPT_LOGITS", 0)  # TRL's head, as with more logits or on a GPU
        expected, expected_gradient = compute(model, forward, "padded", pairs, weights)
    for arrangement in ARRANGEMENTS:
        log_probs, gradient = compute(model, forward, arrangement, pairs, weights)
        assert (log_probs - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    assert model.config._attn_implementation == implementation


def test_a_pair_alone_has_the_same_values_as_among_others():
    model, pairs = make_model("llama", SMALL), make_pairs()
    forward = PairForward(model, 256)
    with torch.no_grad(), forward.computing(pairs, CPU) as batch:
        chosen, rejected = batch.log_probs(model).chunk(2)
    for index, pair in enumerate(pairs):
        with torch.no_grad(), forward.computing([pair], CPU) as batch:
            alone = batch.log_probs(model).tolist()
        assert [chosen[index].item(), rejected[index].item()] == pytest.approx(alone, rel=1e-5)


def test_bfloat16_differs_by_no_more_than_padded_rows_do_among_themselves():
    pairs = make_pairs()
    exact_model = make_model("llama", SMALL)
    exact_forward = PairForward(exact_model, 256)
    exact_forward.arrangement = "padded"
    with torch.no_grad(), exact_forward.computing(pairs, CPU) as batch:
        exact = batch.log_probs(exact_model)
    model = make_model("llama", SMALL).to(torch.bfloat16)
    forward = PairForward(model, 256)
    errors = {}
    for arrangement in ("padded", "shared"):
        forward.arrangement = arrangement
        with torch.no_grad(), forward.computing(pairs, CPU) as batch:
            errors[arrangement] = (batch.log_probs(model) - exact).norm().item()
    assert errors["padded"] > 0
    assert errors["shared"] < 1.5 * errors["padded"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("falcon_mamba", {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}),
        ("gpt_oss", SMALL | WINDOW | {"num_local_experts": 2, "num_experts_per_tok": 1}),
        ("mpt", {"vocab_size": 200, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    ],
)
def test_what_cannot_be_packed_is_padded_and_says_so_once(kind, fields, caplog):
    model, pairs = make_model(kind, fields), make_pairs()
    forward = PairForward(model, 256)
    forward.choose_arrangement(model, pairs, CPU)
    assert forward.arrangement == "padded"
    assert [record.getMessage().count("prompt of a pair") for record in caplog.records].count(1) == 1
    assert model.training
    with torch.no_grad(), forward.computing(pairs, CPU) as batch:
        together = batch.log_probs(model)
    assert together.isfinite().all()


def test_a_token_sees_its_stem_and_its_branch_alone():
    """Two trees: a stem of two tokens with branches of one and two, and a stem of one with a branch of one."""
    layout = Layout([Tree(2, (1, 2)), Tree(1, (1,))])
    assert layout.positions.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert layout.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert layout.mask(window=2)[0, 0].int().tolist()[4] == [0, 0, 0, 1, 1, 0, 0]


def test_groups_hold_every_token_once_and_give_it_back():
    layout = Layout([Tree(100, (60, 50)), Tree(100), Tree(30, (20, 1)), Tree(300)])
    assert layout.gather is not None
    states = torch.randn(1, 2, 661, 4)
    assert torch.equal(layout.from_groups(layout.to_groups(states)), states.transpose(1, 2))
    assert layout.mask().shape[-1] % 8 == 0
