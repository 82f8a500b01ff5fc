"""Both engines, with a tiny model: texts depend on the prompt and its seed, and an adapter is the merged model."""

import pytest
from transformers import AutoConfig

from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.engine import Weights, build_engine, check_prompts, complete, context_length, serves_adapter
from xgray.models import load_tokenizer
from xgray.rows import Prompt

PROMPTS = [
    Prompt(f"en/{index}", "en", text)
    for index, text in enumerate(
        ["Shut up, you", "The weather in the north", "My neighbour is", "A", "It was late and the"]
    )
]
GENERATE = Generate(k=3, max_new_tokens=6)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def engine(request, tiny_model, tiny_adapter):
    return build_engine(request.param, Weights(tiny_model, None, "float32", (tiny_adapter[0],)), GENERATE)


def texts(rows):
    return {row.prompt_id: row.completions for row in rows}


def test_texts_do_not_depend_on_batch_or_order(engine):
    whole = texts(complete(engine, PROMPTS, "base", None, 7))
    pieces = texts(complete(engine, PROMPTS[3:], "base", None, 7) + complete(engine, PROMPTS[:3], "base", None, 7))
    assert pieces == whole
    assert texts(complete(engine, PROMPTS[::-1], "base", None, 7)) == whole


def test_samples_of_a_prompt_differ_and_so_do_seeds(engine):
    (row,) = complete(engine, PROMPTS[:1], "base", None, 7)
    assert len(row.completions) == len(row.token_counts) == len(row.finish_reasons) == 3
    assert len(set(row.completions)) > 1
    (other,) = complete(engine, PROMPTS[:1], "base", None, 8)
    assert other.completions != row.completions


def test_counts_and_reasons(engine):
    for row in complete(engine, PROMPTS, "base", None, 7):
        for count, reason in zip(row.token_counts, row.finish_reasons, strict=True):
            assert reason in ("length", "stop")
            assert count == 6 or (reason == "stop" and count < 6)


@pytest.mark.parametrize("name", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_adapter_gives_the_merged_models_greedy_text(name, tiny_model, tiny_adapter):
    adapter, merged = tiny_adapter
    greedy = Generate(k=1, max_new_tokens=6, temperature=0)
    adapted = build_engine(name, Weights(tiny_model, None, "float32", (adapter,)), greedy)
    with_adapter = texts(complete(adapted, PROMPTS, "dpo", adapter, 7))
    without = texts(complete(adapted, PROMPTS, "base", None, 7))
    del adapted
    assert with_adapter == texts(
        complete(build_engine(name, Weights(merged, None, "float32"), greedy), PROMPTS, "m", None, 7)
    )
    assert without == texts(
        complete(build_engine(name, Weights(tiny_model, None, "float32"), greedy), PROMPTS, "m", None, 7)
    )
    assert with_adapter != without


def test_long_prompt_is_refused_by_name(tiny_model):
    prompts = [*PROMPTS, Prompt("de/77", "de", "wort " * 200)]
    context = context_length(AutoConfig.from_pretrained(tiny_model))
    assert context == 128
    with pytest.raises(InputError, match=r"longer than 122 tokens.*de/77 \(\d+\)"):
        check_prompts(prompts, load_tokenizer(tiny_model), GENERATE, context)
    check_prompts(PROMPTS, load_tokenizer(tiny_model), GENERATE, context)


def test_adapter_of_the_head_is_not_for_vllm(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"target_modules": ["q_proj", "lm_head"]}')
    assert not serves_adapter("vllm", str(tmp_path))
    assert serves_adapter("transformers", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"target_modules": ["q_proj", "down_proj"]}')
    assert serves_adapter("vllm", str(tmp_path))
