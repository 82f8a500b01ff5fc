"""A generative safety model that scores texts, against sampling one token of its answer with the same model.

    python -m benchmarks.guard [--prompt polyguard-qwen] [--engine transformers] [--limit 96] [--rounds 3] [--model ID]

The prompt is that of a scorer that comes with xgray, without its chat template: PolyGuard's has the policy before the
text, so that all prompts share it; ShieldGemma's (``--prompt shieldgemma-2b``) has it after the text. The model is
SmolLM2 135M by default: its answers mean little, but take the time that any model of its size takes. The texts are the
``text`` column of CSV files, shuffled over languages as completions arrive.

The plain version with transformers calls ``generate`` for one new token, ``--batch-size`` prompts at a time in their
order, padded on the left; the probability of one answer against the other is read from the token's scores. With vLLM it
samples one token of the two (``allowed_token_ids``) in the same engine, with the same prefix cache; this gives no
probability. Tokenization is part of the measured time. Rounds alternate; the table shows medians, and the ratio is the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.classifier import EMBEDDED, SMOLLM2, read_texts
from xgray.config import Model, Score, merge
from xgray.config.file import load_score
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.models.source import resolve
from xgray.score.guard import GuardScorer
from xgray.score.vllm_guard import VllmEngine

TOLERANCE = 1e-4
"""Both versions give the same probability in float32, up to the order of sums."""


def guard_section(prompt: str, model: str, engine: str) -> Score:
    """Return the section of a shipped guard with another model, and its chat as one text."""
    values = load_score(prompt)
    system, template = values["guard"].get("system"), values["guard"]["template"]
    changes = {
        "model": {"id": model, "revision": None, "dtype": "float32"},
        "engine": engine,
        "chat": False,
        "system": None,
        "template": template if system is None else f"{system}\n\n{template}",
    }
    section: Score = Score.model_validate(merge(values, {"guard": changes}))
    return section


def plain_transformers(section: Score, prompts: list[str], tokens: list[int], size: int) -> Callable[[], list[float]]:
    """Return a function that samples a token after each prompt, and reads the second answer's probability from it."""
    import torch

    assert section.guard
    assert section.guard.model
    path = resolve(section.guard.model)
    tokenizer, model = load_tokenizer(path), load_causal_lm(path, section.guard.model.dtype)

    def score() -> list[float]:
        scores: list[float] = []
        for start in range(0, len(prompts), size):
            inputs = tokenizer(prompts[start : start + size], padding=True, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(
                    **inputs.to(model.device),
                    max_new_tokens=1,
                    do_sample=False,
                    output_scores=True,
                    return_dict_in_generate=True,
                    pad_token_id=tokenizer.pad_token_id,
                )
            scores += output.scores[0][:, tokens].float().softmax(-1)[:, 1].tolist()
        return scores

    return score


def plain_vllm(scorer: GuardScorer, prompts: list[str]) -> Callable[[], list[float]]:
    """Return a function that samples one of the two answers after each prompt, in the scorer's own engine."""
    from vllm import SamplingParams

    engine = scorer._engine
    assert isinstance(engine, VllmEngine)
    parameters = SamplingParams(max_tokens=1, temperature=1.0, seed=0, allowed_token_ids=list(engine._tokens))

    def score() -> list[float]:
        answers = engine._llm.generate(prompts, parameters, use_tqdm=False)
        return [float(answer.outputs[0].token_ids[0] == engine._tokens[1]) for answer in answers]

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--prompt", default="polyguard-qwen", help="a scorer that comes with xgray")
    parser.add_argument("--model", default=SMOLLM2.id, help="a causal language model; SmolLM2 by default")
    parser.add_argument("--texts", type=Path, default=EMBEDDED, help="folder of CSV files with a column text")
    parser.add_argument("--limit", type=int, default=96, help="texts in all")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts in a plain batch of transformers")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = read_texts(options.texts, options.limit)
    section = guard_section(options.prompt, options.model, options.engine)
    scorer = GuardScorer(section)
    asyncio.run(scorer.score(texts[:1], "en"))  # This loads the model and computes what prompts share.
    facts = scorer.provenance()
    # The space before an answer belongs to the answer's token.
    prompts = [facts["prompt"].replace("{text}", text.strip()).rstrip(" ") for text in texts]
    is_vllm, tokens = options.engine == "vllm", list(facts["tokens"].values())
    plain = plain_vllm(scorer, prompts) if is_vllm else plain_transformers(section, prompts, tokens, options.batch_size)
    plain()
    lengths = [len(ids) for ids in load_tokenizer(resolve(Model(id=options.model)))(prompts)["input_ids"]]
    print(f"{len(texts)} prompts of {np.mean(lengths):.0f} tokens, {facts['num_shared_tokens']} of them shared")
    rounds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        expected = plain()
        middle = time.perf_counter()
        results = asyncio.run(scorer.score(texts, "en"))
        seconds = middle - start, time.perf_counter() - middle
        rounds.append((*seconds, seconds[0] / seconds[1]))
    scores = np.array([result.scores["toxicity"] for result in results if result.scores], np.float64)
    slow, fast, ratio = map(statistics.median, zip(*rounds, strict=True))
    print(f"{options.engine:22}{'texts/s':>10}{'ratio':>8}")
    print(f"{'sampling one token':22}{len(texts) / slow:>10.2f}")
    print(f"{'the scorer guard':22}{len(texts) / fast:>10.2f}{ratio:>8.2f}")
    print("ratios of the rounds:", ", ".join(f"{ratio:.2f}" for _, _, ratio in rounds))
    if is_vllm:
        print(f"mean score {scores.mean():.3f}, share of sampled answers {np.mean(expected):.3f}")
        return
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
    print(
        f"scores from {scores.min():.3f} to {scores.max():.3f}, the same within {np.abs(scores - expected).max():.1e}"
    )


if __name__ == "__main__":
    main()
