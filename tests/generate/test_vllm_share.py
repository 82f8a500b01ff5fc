"""Samples that share their prompt's cache inside vLLM: the same texts from fewer computed tokens."""

from typing import Any

import pytest

from xgray.models.vllm import cpu_options, prepare_environment
from xgray.models.vllm_start import EngineFields, start_vllm

pytestmark = pytest.mark.slow

TEXTS = [
    "It was late",
    "My neighbour says that the weather in the mountains is worse than it was, and that nobody goes there " * 2,
    "It was late",
    "A",
]


def sample(model: str, k: int = 3, **options: Any) -> tuple[list[list[list[int]]], list[int]]:
    """Return the samples' tokens, by text, and the number of each text's tokens that were not computed for it."""
    from vllm import SamplingParams

    llm = start_vllm(model, EngineFields("", "", ""), dtype="float32", max_model_len=128, **cpu_options(128), **options)
    # Every twentieth token ends a sample, so that some are finished while others of their prompt still wait.
    ends = list(range(0, 49_152, 20))
    parameters = [
        SamplingParams(n=k, seed=seed, max_tokens=40, ignore_eos=True, stop_token_ids=ends)
        for seed in range(len(TEXTS))
    ]
    outputs = llm.generate(TEXTS, parameters, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    tokens = [[list(each.token_ids) for each in output.outputs] for output in outputs]
    return tokens, [output.num_cached_tokens for output in outputs]


@pytest.fixture(scope="module")
def prepared(tiny_model: str) -> str:
    prepare_environment(tiny_model)
    return tiny_model


def test_samples_of_a_prompt_copy_its_cache_and_say_the_same(prepared: str) -> None:
    from xgray.generate.vllm_share import sharing_options

    alone, _ = sample(prepared)
    # Of four requests at a time some wait, and eight blocks are too few for them: requests are stopped and begin again.
    crowded = {"max_num_seqs": 4, "num_gpu_blocks_override": 8}
    assert len({len(tokens) for samples in alone for tokens in samples}) > 3
    assert sample(prepared, **crowded)[0] == alone
    assert sample(prepared, **sharing_options())[0] == alone
    assert sample(prepared, **crowded, **sharing_options())[0] == alone


def test_a_repeated_prompt_is_computed_but_for_its_last_token(prepared: str) -> None:
    from transformers import AutoTokenizer

    from xgray.generate.vllm_share import sharing_options

    _, cached = sample(prepared, k=1, **sharing_options())
    num_tokens = len(AutoTokenizer.from_pretrained(prepared)(TEXTS[2]).input_ids)
    assert num_tokens > 1
    assert cached == [0, 0, num_tokens - 1, 0]
