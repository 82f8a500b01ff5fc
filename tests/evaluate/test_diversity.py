import numpy as np
import pytest

from xgray.evaluate.diversity import distinct_ratios, diversity, released_groups


def test_ratios_by_hand():
    # Group 0: texts [0 1 0 1] and [1 0]; group 1: [2 2 2]; group 2 has no tokens.
    tokens = np.array([0, 1, 0, 1, 1, 0, 2, 2, 2])
    text_of = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    group_of = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    result = distinct_ratios(tokens, text_of, group_of, 3)
    # Unigrams {0, 1} of 6 tokens; bigrams {01, 10}, not 11 across the texts; trigrams {010, 101}.
    np.testing.assert_allclose(result[0], [2 / 6, 2 / 6, 2 / 6])
    np.testing.assert_allclose(result[1], [1 / 3, 1 / 3, 1 / 3])
    assert np.isnan(result[2]).all()


def test_token_numbers_too_large_for_one_pass():
    # A trigram over 2**20 tokens takes 60 of 63 bits, so the 20 groups take passes of at most 8 groups.
    random = np.random.default_rng(0)
    group_of = np.sort(random.integers(0, 20, 400))
    tokens = random.choice([0, 1, 2, 2**20 - 1], 400)
    result = distinct_ratios(tokens, group_of, group_of, 20)
    for group in range(20):
        members = tokens[group_of == group].tolist()
        for order in (1, 2, 3):
            grams = {tuple(members[start : start + order]) for start in range(len(members) - order + 1)}
            assert result[group, order - 1] == len(grams) / len(members)


def ratios_by_sets(groups, tokenizer, is_released):
    """Compute Dist-n one text at a time, with Python's sets."""
    ratios = []
    for group in groups:
        seen, total = [set(), set(), set()], 0
        for text in group:
            ids = tokenizer(text)["input_ids"]
            surfaces = [tokenizer.decode([token], skip_special_tokens=True) for token in ids]
            pairs = zip(ids, surfaces, strict=True)
            units = [surface if is_released else token for token, surface in pairs if surface]
            total += len(units)
            for order in (1, 2, 3):
                seen[order - 1].update(tuple(units[start : start + order]) for start in range(len(units) - order + 1))
        ratios.append([len(grams) / total if total else np.nan for grams in seen])
    return np.array(ratios)


GROUPS = [
    [" the old cat sat", " the cat", "", " the the the the"],
    ["नमस्ते दुनिया 고양이", " idiot\n\nidiot the"],
    [""],
    ["x"],
    [],
    [" cat", " cat", " cat sat on the mat the cat sat"],
]


@pytest.mark.parametrize("tokenizer", ["byte_tokenizer", "marked_tokenizer", "t5_tokenizer"])
@pytest.mark.parametrize("protocol", ["corrected", "released"])
def test_equals_sets_over_single_texts(request, tokenizer, protocol):
    tokenizer = request.getfixturevalue(tokenizer)
    result = diversity(GROUPS, tokenizer, protocol)
    np.testing.assert_allclose(result, ratios_by_sets(GROUPS, tokenizer, protocol == "released"), rtol=1e-12)
    assert np.isnan(result[[2, 4]]).all()


def test_released_makes_tokens_of_the_same_text_equal(byte_tokenizer, marked_tokenizer):
    # "▁c" and "c" both decode to "c".
    ids = marked_tokenizer.convert_tokens_to_ids
    assert marked_tokenizer("c xc", add_special_tokens=False)["input_ids"] == ids(["▁c", "▁", "x", "c"])
    assert diversity([["c xc"]], marked_tokenizer)[0, 0] == 1
    assert diversity([["c xc"]], marked_tokenizer, "released")[0, 0] == pytest.approx(2 / 3)
    # All parts of a character decode to the same replacement character.
    assert diversity([["नमस्ते"]], byte_tokenizer, "released")[0, 0] < diversity([["नमस्ते"]], byte_tokenizer)[0, 0]


def test_no_groups_give_no_rows(byte_tokenizer):
    assert diversity([], byte_tokenizer).shape == (0, 3)


def test_released_groups_are_every_k_completions_without_empty_ones():
    assert released_groups([["a", "b"], ["c", ""], ["", ""], ["d", "e"]], k=2) == [["a", "b"], ["c"], ["d", "e"]]
    # A missing completion shifts all groups after it.
    assert released_groups([["a", "b"], ["c"], ["d", "e"]], k=2) == [["a", "b"], ["c", "d"], ["e"]]
    # A first prompt that failed shifts nothing: the stride is that of the run.
    assert released_groups([[], ["a", "b"], ["c", "d"]], k=2) == [["a", "b"], ["c", "d"]]
    assert released_groups([], k=2) == []
