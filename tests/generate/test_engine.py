"""Both engines with a tiny model: what texts depend on, adapters, and prompts that are refused."""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoConfig, TemperatureLogitsWarper, TopPLogitsWarper

from xgray.config import Generate, Model
from xgray.errors import InputError
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, begin_completions, check_prompts, complete, serves_adapter
from xgray.generate.seeds import prompt_seed
from xgray.generate.transformers_engine import SeededChoice
from xgray.models.load import context_length, load_tokenizer
from xgray.models.vllm import check_capability
from xgray.rows import Prompt

LONG = "It was late, and the rain came down on the roofs " * 4
"""A beginning longer than a block of vLLM's cache, which two prompts share."""
PROMPTS = [
    Prompt(f"en/{index}", "en", text)
    for index, text in enumerate(["Shut up, you", "The weather in the", LONG + "he", "A", LONG + "My neighbour is"])
]
GENERATE = Generate(k=3, max_new_tokens=6)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def engine(request, tiny_model, tiny_adapter):
    return build_engine(request.param, Weights(tiny_model, None, "float32", (tiny_adapter[0],)), GENERATE)


def texts(rows):
    """Completions by prompt id."""
    return {row.prompt_id: row.completions for row in rows}


def test_texts_do_not_depend_on_batch_or_order(engine):
    whole = texts(complete(engine, PROMPTS, "base", None, 7))
    in_pieces = texts(complete(engine, PROMPTS[3:], "base", None, 7) + complete(engine, PROMPTS[:3], "base", None, 7))
    assert in_pieces == whole
    assert texts(complete(engine, PROMPTS[::-1], "base", None, 7)) == whole


def test_texts_do_not_depend_on_what_is_begun_beside_them(engine):
    def begin(prompts, model):
        return begin_completions(engine, prompts, model, None, 7)

    first, second = begin(PROMPTS[:2], "base"), begin(PROMPTS[2:4], "base")
    rows = first()
    third = begin(PROMPTS[4:], "base")
    rows += second() + third()
    assert rows == complete(engine, PROMPTS, "base", None, 7)


@pytest.mark.parametrize("engine", [pytest.param("vllm", marks=pytest.mark.slow)], indirect=True)
def test_an_error_loses_what_was_begun_and_nothing_that_follows(engine):
    expected = complete(engine, PROMPTS, "base", None, 7)
    lost = begin_completions(engine, PROMPTS[:2], "base", None, 8)
    with pytest.raises(Exception, match="maximum context length"):
        engine.begin(["word " * 200], [0], None)
    assert complete(engine, PROMPTS, "base", None, 7) == expected
    with pytest.raises(RuntimeError, match="lost"):
        lost()


def test_transformers_samples_from_the_distribution_after_temperature_and_top_p():
    """Temperature 0.5 squares the probabilities, and top_p 0.93 keeps the first three of four."""
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    squares = probabilities.square() / probabilities.square().sum()
    assert squares[:2].sum() < 0.93 < squares[:3].sum()
    num_rows = 4000
    scores = probabilities.log().repeat(num_rows, 1)
    for processor in (
        TemperatureLogitsWarper(0.5),
        TopPLogitsWarper(0.93),
        SeededChoice(range(num_rows), torch.device("cpu")),
    ):
        scores = processor(None, scores)
    counts = torch.bincount(scores.argmax(-1), minlength=4)
    expected = squares[:3] / squares[:3].sum()
    assert counts[3] == 0
    assert counts[:3].div(num_rows).tolist() == pytest.approx(expected.tolist(), abs=0.03)  # 4 standard errors


def test_samples_of_a_prompt_differ_and_depend_on_the_seed(engine):
    (row,) = complete(engine, PROMPTS[:1], "base", None, 7)
    assert len(row.completions) == len(row.token_counts) == len(row.finish_reasons) == 3
    assert len(set(row.completions)) > 1
    (other,) = complete(engine, PROMPTS[:1], "base", None, 8)
    assert other.completions != row.completions


def test_a_prefix_is_read_before_every_prompt_and_is_in_no_text(tiny_model):
    greedy = GENERATE.model_copy(update={"temperature": 0})
    plain, prefixed = (
        build_engine("transformers", Weights(tiny_model, None, "float32", prefix=prefix), greedy)
        for prefix in ("", "</s>")
    )
    texts_read = ["Shut up, you", "A"]
    expected = plain.sample([f"</s>{text}" for text in texts_read], [0, 0], None)
    assert prefixed.sample(texts_read, [0, 0], None) == expected
    assert expected != plain.sample(texts_read, [0, 0], None)


def test_token_counts_agree_with_finish_reasons(engine):
    for row in complete(engine, PROMPTS, "base", None, 7):
        for count, reason in zip(row.token_counts, row.finish_reasons, strict=True):
            assert reason in ("length", "stop")
            assert count == 6 or (reason == "stop" and count < 6)


@pytest.mark.parametrize("name", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_adapter_and_merged_model_give_the_same_greedy_texts(name, tiny_model, tiny_adapter):
    adapter, merged = tiny_adapter
    greedy = Generate(k=1, max_new_tokens=6, temperature=0)

    def texts_of(engine, adapter=None):
        return texts(complete(engine, PROMPTS, "m", adapter, 7))

    base = Weights(tiny_model, None, "float32")
    whole = Weights(merged, None, "float32")
    engine = build_engine(name, replace(base, adapters=(adapter,)), greedy)
    with_adapter, without_adapter = texts_of(engine, adapter), texts_of(engine)
    assert with_adapter != without_adapter
    assert not engine.reload(whole), "the layers of adapters would stay"
    del engine
    engine = build_engine(name, whole, greedy)
    assert texts_of(engine) == with_adapter
    assert engine.reload(base) == (name == "vllm")
    assert texts_of(engine if name == "vllm" else build_engine(name, base, greedy)) == without_adapter


def test_the_manifest_learns_what_vllm_chose(engine, request):
    facts = {} if request.node.callspec.params["engine"] == "transformers" else engine.facts
    assert facts == engine.facts
    if facts:
        assert facts["max_num_seqs"] >= 1
        assert facts["batch_invariant"] is False


@pytest.mark.parametrize(("capability", "is_refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_batch_invariance_is_refused_on_gpus_that_are_too_old(capability, is_refused):
    if is_refused:
        with pytest.raises(InputError, match=r"generate\.batch_invariant: .*8\.0 or later, and Tesla T4 has 7\.5"):
            check_capability(capability, "Tesla T4")
    else:
        check_capability(capability, "GPU")


def test_long_prompt_is_refused_by_name(tiny_model):
    prompts = [*PROMPTS, Prompt("de/77", "de", "wort " * 200)]
    context = context_length(AutoConfig.from_pretrained(tiny_model))
    assert context == 128
    with pytest.raises(InputError, match=r"longer than 122 tokens.*de/77 \(\d+\)"):
        check_prompts([prompts], load_tokenizer(tiny_model), GENERATE, context)
    check_prompts([PROMPTS], load_tokenizer(tiny_model), GENERATE, context)


def test_empty_prompts_are_refused_by_name(tiny_model):
    prompts = [*PROMPTS, *(Prompt(f"de/{number}", "de", text) for number, text in enumerate(["", "\n "], start=77))]
    with pytest.raises(InputError, match=r"^prompts without any text: de/77, de/78$"):
        check_prompts([prompts], load_tokenizer(tiny_model), GENERATE, 128)


def test_greedy_samples_are_the_same_text(tiny_model):
    greedy = Generate(k=2, max_new_tokens=6, temperature=0)
    engine = build_engine("transformers", Weights(tiny_model, None, "float32"), greedy)
    for row in complete(engine, PROMPTS, "base", None, 7):
        assert row.completions[0] == row.completions[1]


def test_prompts_may_have_more_tokens_than_fit_in_one_step_of_vllm(engine):
    # With chunked prefill a prompt would be cut at the end of a step, and its samples' generators cannot be rewound.
    prompts = [Prompt(f"en/{index}", "en", "word " * (60 + index)) for index in range(20)]
    whole = texts(complete(engine, prompts, "base", None, 7))
    assert texts(complete(engine, prompts[:1], "base", None, 7)) == {"en/0": whole["en/0"]}


@pytest.mark.parametrize("engine", [pytest.param("vllm", marks=pytest.mark.slow)], indirect=True)
def test_the_nucleus_gives_the_texts_that_vllms_own_gives(engine):
    from vllm import SamplingParams

    rows = texts(complete(engine, PROMPTS, "base", None, 7))
    assert GENERATE.top_p == 0.8
    parameters = [
        SamplingParams(
            n=3, max_tokens=6, temperature=0.9, top_p=0.8, seed=prompt_seed(7, prompt.prompt_id), ignore_eos=True,
            stop_token_ids=engine._ends, extra_args={"top_p": 1.0},
        )
        for prompt in PROMPTS
    ]  # fmt: skip
    outputs = engine._llm.generate([prompt.text for prompt in PROMPTS], parameters, use_tqdm=False)
    own = {
        prompt.prompt_id: [sample.text for sample in out.outputs] for prompt, out in zip(PROMPTS, outputs, strict=True)
    }
    assert rows == own
    assert texts(complete(engine, PROMPTS, "base", None, 7)) == rows, "the shared engine is as it was"


# After the tests of the shared engine: where a second vLLM engine of a process ends, the first can sample no more.
def test_a_sample_does_not_depend_on_k(engine, request, tiny_model):
    name, section = request.node.callspec.params["engine"], GENERATE.model_copy(update={"k": 5})
    few = texts(complete(engine, PROMPTS, "base", None, 7))
    many = texts(complete(build_engine(name, Weights(tiny_model, None, "float32"), section), PROMPTS, "base", None, 7))
    assert {prompt_id: samples[:3] for prompt_id, samples in many.items()} == few
    assert any(samples[3] not in samples[:3] for samples in many.values())


def write_config(folder, **changes):
    config = {"target_modules": ["q_proj", "down_proj"], "r": 16, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return str(folder)


def base_model(folder):
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return Model(id=str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"r": 1024},
    ],
)
def test_vllm_does_not_serve_adapters_that_it_cannot_apply(tmp_path, changes):
    adapter, base = write_config(tmp_path, **changes), base_model(tmp_path)
    assert not serves_adapter("vllm", adapter, base, on_gpu=True)
    assert serves_adapter("transformers", adapter, base, on_gpu=True)


def test_vllm_serves_no_adapter_on_a_cpu(tmp_path):
    assert not serves_adapter("vllm", write_config(tmp_path), base_model(tmp_path), on_gpu=False)


@pytest.mark.slow
def test_closed_vllm_frees_its_memory(tiny_model):
    process = psutil.Process()
    used = []
    for _ in range(2):
        engine = build_engine("vllm", Weights(tiny_model, None, "float32"), GENERATE)
        complete(engine, PROMPTS, "base", None, 7)
        used.append(process.memory_info().rss)
        engine.close()
        del engine
        gc.collect()
    # The cache of keys and values alone takes 1 GiB.
    assert used[-1] - used[0] < 2**29


@pytest.mark.parametrize("name", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_texts_follow_the_experiment_and_not_the_models_generation_config(name, tiny_model, tmp_path):
    """Greedy texts of random weights repeat themselves, which a penalty and suppressed tokens would change."""
    greedy = Generate(k=1, max_new_tokens=12, temperature=0)
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))

    def texts_of(path):
        return texts(
            complete(build_engine(name, Weights(str(path), None, "float32"), greedy), PROMPTS[:3], "m", None, 7)
        )

    expected = texts_of(tiny_model)
    tokenizer = load_tokenizer(tiny_model)
    first = [tokenizer(text)["input_ids"][0] for (text,) in expected.values()]
    settings = {"repetition_penalty": 3.0, "suppress_tokens": first, "eos_token_id": first, "no_repeat_ngram_size": 1}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    assert texts_of(copy) == expected


@pytest.mark.slow
def test_what_a_process_of_vllm_refuses_arrives_with_its_reason(tiny_model, monkeypatch):
    """On CUDA the engine computes in a process of its own, and vLLM itself says only that its start failed."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    with pytest.raises(InputError, match=r"requested memory for kv \(100000\.0 GiB\).*VLLM_CPU_KVCACHE_SPACE"):
        build_engine("vllm", Weights(tiny_model, None, "float32"), GENERATE)
