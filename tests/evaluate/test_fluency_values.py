"""Perplexities against plain loops: one text at a time, without padding and cache."""

import math

import pytest
import torch

from xgray.config import Fluency
from xgray.errors import InputError
from xgray.evaluate.fluency import perplexities

PROMPTS = ["you are an", "the old cat sat on the", "der", "नमस्ते", "여기에 고양이가"]
COMPLETIONS = [
    [" idiot", " old cat on the mat", ""],
    [" mat", " mat"],
    [" alte Mann ist dumm", "s", " M", " 여기"],
    [],
    [" 있다", " cat\n\nsat"],
]


def causal_perplexity(model, prompt_ids, completion_ids):
    """Compute the perplexity of a completion by the model's own loss on the whole sequence."""
    ids = torch.tensor([prompt_ids + completion_ids])
    labels = torch.tensor([[-100] * len(prompt_ids) + completion_ids])
    with torch.no_grad():
        return math.exp(model(ids, labels=labels).loss.item())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3"])
@pytest.mark.parametrize("batch_tokens", [1, 80, 4096])
def test_causal_perplexities_equal_those_of_single_texts(causal_models, byte_tokenizer, name, batch_tokens):
    model = causal_models[name]
    measured = perplexities(model, byte_tokenizer, PROMPTS, COMPLETIONS, Fluency(), batch_tokens)
    assert [len(group) for group in measured] == [len(group) for group in COMPLETIONS]
    for prompt, group, values in zip(PROMPTS, COMPLETIONS, measured, strict=True):
        for text, value in zip(group, values, strict=True):
            if text == "":
                assert value is None
                continue
            expected = causal_perplexity(model, byte_tokenizer(prompt)["input_ids"], byte_tokenizer(text)["input_ids"])
            assert value == pytest.approx(expected, rel=1e-4)


def test_perplexities_of_a_random_model_differ(causal_models, byte_tokenizer):
    # Otherwise the comparison above would hold for a constant too.
    values = perplexities(causal_models["llama"], byte_tokenizer, PROMPTS, COMPLETIONS, Fluency(), 4096)[2]
    assert max(values) > 1.5 * min(values)


def test_the_model_is_unchanged_afterwards(causal_models, byte_tokenizer):
    model = causal_models["llama"]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        perplexities(model, byte_tokenizer, PROMPTS, COMPLETIONS, Fluency(), 80)
        after = model(ids).logits
    assert after.shape == (1, 3, 320)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_no_word_mark_is_added_between_prompt_and_completion(causal_models, marked_tokenizer):
    model = causal_models["llama"]
    ids = marked_tokenizer.convert_tokens_to_ids
    expected = [
        causal_perplexity(model, ids(["<s>", "▁", "a"]), ids(["▁cat"])),
        causal_perplexity(model, ids(["<s>", "▁", "a"]), ids(["b", "▁cat"])),
    ]
    assert perplexities(model, marked_tokenizer, ["a"], [[" cat", "b cat"]], Fluency(), 80)[0] == pytest.approx(
        expected
    )


def test_an_empty_prompt_is_the_beginning_of_text(causal_models, byte_tokenizer):
    model = causal_models["gpt2"]
    end = byte_tokenizer.eos_token_id
    expected = causal_perplexity(model, [end], byte_tokenizer("the cat")["input_ids"])
    assert perplexities(model, byte_tokenizer, [""], [["the cat"]], Fluency(), 80) == [[pytest.approx(expected)]]


def test_texts_longer_than_the_context_are_refused(causal_models, byte_tokenizer):
    with pytest.raises(InputError, match=r"80 tokens.*reads 64"):
        perplexities(causal_models["gpt2"], byte_tokenizer, ["x" * 40], [["z" * 40]], Fluency(), 80)


def test_released_drops_blank_and_large_values(causal_models, byte_tokenizer):
    model, completions = causal_models["llama"], [[" ", " idiot", " cat 여기에 dumm", ""]]
    corrected = perplexities(model, byte_tokenizer, ["you"], completions, Fluency(), 80)[0]
    released = perplexities(model, byte_tokenizer, ["you"], completions, Fluency(protocol="released"), 80)[0]
    assert corrected[0] is not None
    assert released[0] is None
    assert released[3] is corrected[3] is None
    for before, after in zip(corrected[1:3], released[1:3], strict=True):
        assert after == (before if before < 1e4 else None)


def test_seq2seq_corrected_perplexities_equal_those_of_single_texts(t5_model, t5_tokenizer):
    section = Fluency(kind="seq2seq")
    measured = perplexities(t5_model, t5_tokenizer, PROMPTS, COMPLETIONS, section, 80)
    for prompt, group, values in zip(PROMPTS, COMPLETIONS, measured, strict=True):
        for text, value in zip(group, values, strict=True):
            # The tokenizer adds an end-of-text token, which is not part of the completion.
            labels = t5_tokenizer(text, return_tensors="pt").input_ids[:, :-1]
            if text == "":
                assert value is None
                continue
            with torch.no_grad():
                loss = t5_model(t5_tokenizer(prompt, return_tensors="pt").input_ids, labels=labels).loss
            assert value == pytest.approx(math.exp(loss.item()), rel=1e-4)


def released_script(model, tokenizer, prompt, text):
    """Compute the released script's perplexity of one completion."""
    scaled, lengths = [], []
    for part in (prompt + text, prompt):
        ids = tokenizer(part, return_tensors="pt").input_ids
        with torch.no_grad():
            scaled.append(model(ids, labels=ids).loss.item() * (ids.shape[1] - 1))
        lengths.append(ids.shape[1])
    return math.exp((scaled[0] - scaled[1]) / (lengths[0] - lengths[1]))


def test_seq2seq_released_perplexities_equal_the_script(t5_model, t5_tokenizer):
    section = Fluency(kind="seq2seq", protocol="released")
    measured = perplexities(t5_model, t5_tokenizer, PROMPTS, COMPLETIONS, section, 80)
    for prompt, group, values in zip(PROMPTS, COMPLETIONS, measured, strict=True):
        for text, value in zip(group, values, strict=True):
            if text == "":
                assert value is None
            else:
                expected = released_script(t5_model, t5_tokenizer, prompt, text)
                assert value == (pytest.approx(expected, rel=1e-3) if expected < 1e4 else None)


def test_a_completion_that_adds_no_token_has_no_released_perplexity(t5_model, t5_tokenizer):
    # The script divides by the number of tokens that the completion adds.
    prompt, text = "the cat ", " "
    assert perplexities(
        t5_model, t5_tokenizer, [prompt], [[text]], Fluency(kind="seq2seq", protocol="released"), 80
    ) == [[None]]
