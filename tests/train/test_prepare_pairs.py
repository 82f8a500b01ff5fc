"""Pairs become token ids as TRL makes them, are truncated and filtered by length, and split for validation."""

import pytest

from benchmarks.reference.released import dpo_input, ids_and_labels, lora_names
from benchmarks.reference.tiny_models import make_model
from tests.train.tiny import PAIRS
from xgray.config import Train
from xgray.errors import InputError
from xgray.rows import PreferencePair
from xgray.train.packing import arrange
from xgray.train.pairs import TokenizedPair, prepare_pairs


def all_pairs(prepared):
    return prepared.train + prepared.validation


def test_tokens_spell_the_texts_and_end_with_the_end_token(tokenizer):
    [pair] = prepare_pairs(PAIRS[:1], tokenizer, Train(validation_share=0, batch_size=1), seed=0).train
    assert tokenizer.decode(pair.prompt_ids) == PAIRS[0].prompt
    assert tokenizer.decode(pair.chosen_ids) == PAIRS[0].chosen + "</s>"
    assert tokenizer.decode(pair.rejected_ids) == PAIRS[0].rejected + "</s>"


def test_end_token_in_the_text_is_not_doubled(tokenizer):
    ended = PreferencePair("The baker", " sang</s>", " slept")
    [pair] = prepare_pairs([ended], tokenizer, Train(validation_share=0, batch_size=1), seed=0).train
    assert pair.chosen_ids.count(tokenizer.eos_token_id) == 1


def test_token_merged_across_the_boundary_belongs_to_the_completion(tokenizer):
    # " stu" + "pid idiot" is tokenized as " stupid idiot": the prompt's last tokens are no prefix of it.
    [pair] = prepare_pairs(
        [PreferencePair("He called me a stu", "pid idiot!", "dent.")],
        tokenizer,
        Train(validation_share=0, batch_size=1),
        seed=0,
    ).train
    whole = tokenizer("He called me a stupid idiot!</s>")["input_ids"]
    assert pair.prompt_ids + pair.chosen_ids == whole
    assert tokenizer.decode(pair.prompt_ids + pair.rejected_ids) == "He called me a student.</s>"
    assert len(pair.prompt_ids) < len(tokenizer("He called me a stu")["input_ids"])


def test_long_prompt_keeps_its_last_tokens(tokenizer):
    pair = PreferencePair("x y z " * 20 + "The end is near", " good", " bad")
    section = Train(validation_share=0, batch_size=1, max_prompt_length=6)
    prepared = prepare_pairs([pair], tokenizer, section, seed=0)
    [cut] = prepared.train
    whole = tokenizer(pair.prompt)["input_ids"]
    assert cut.prompt_ids == whole[-6:]
    assert prepared.num_truncated == 1


def test_truncated_prompt_keeps_its_beginning_of_text_token(tokenizer):
    class WithBeginning:
        eos_token, bos_token_id = "</s>", tokenizer.bos_token_id

        def __call__(self, texts):
            return {"input_ids": [[self.bos_token_id, *ids] for ids in tokenizer(texts)["input_ids"]]}

    pair = PreferencePair("x y z " * 20 + "The end is near", " good", " bad")
    [cut] = prepare_pairs(
        [pair], WithBeginning(), Train(validation_share=0, batch_size=1, max_prompt_length=6), seed=0
    ).train
    whole = tokenizer(pair.prompt)["input_ids"]
    assert cut.prompt_ids == [tokenizer.bos_token_id, *whole[-5:]]


def test_corrected_filter_counts_tokens_after_truncation(tokenizer):
    pair = PreferencePair("The teacher " * 10, " said", " said a kind word to me")
    lengths = [len(tokenizer(pair.rejected + "</s>")["input_ids"]) + 4]

    def kept(max_length):
        section = Train(validation_share=0, batch_size=1, max_prompt_length=4, max_length=max_length)
        return all_pairs(prepare_pairs([pair], tokenizer, section, seed=0))

    assert lengths[0] > 8
    assert len(kept(lengths[0])) == 1
    with pytest.raises(InputError, match=r"train\.pairs: 1 pairs, of which 0"):
        kept(lengths[0] - 1)


def test_released_filter_counts_characters(tokenizer):
    short, long = PreferencePair("x" * 10, " good", "c" * 10), PreferencePair("x" * 10, "b" * 11, "c")
    section = Train(validation_share=0, batch_size=1, max_length=20, length_filter="released")
    prepared = prepare_pairs([short, long], tokenizer, section, seed=0)
    assert [tokenizer.decode(pair.chosen_ids) for pair in prepared.train] == [" good</s>"]
    assert (prepared.num_pairs, prepared.num_dropped) == (2, 1)


def test_split_is_a_partition_that_depends_on_the_seed(tokenizer):
    section = Train(validation_share=0.25)
    first, again, other = (prepare_pairs(PAIRS, tokenizer, section, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert len(first.validation) == 4  # of 5, the nearest number of whole batches
    assert first.validation != other.validation
    whole = prepare_pairs(PAIRS, tokenizer, Train(validation_share=0, batch_size=1), seed=1).train
    assert sorted(map(repr, all_pairs(first))) == sorted(map(repr, whole))


@pytest.mark.parametrize(
    ("batch_size", "share", "num_held_out"), [(1, 0.001, 1), (2, 0.2, 4), (4, 0.001, 4), (3, 0.5, 9)]
)
def test_whole_batches_are_held_out(tokenizer, batch_size, share, num_held_out):
    section = Train(validation_share=share, batch_size=batch_size)
    assert len(prepare_pairs(PAIRS, tokenizer, section, seed=0).validation) == num_held_out


def test_nothing_is_held_out_for_a_share_of_0(tokenizer):
    assert prepare_pairs(PAIRS, tokenizer, Train(validation_share=0), seed=0).validation == []


@pytest.mark.parametrize("pairs", [[], PAIRS[:1], PAIRS[:7]])
def test_too_few_pairs_are_refused(tokenizer, pairs):
    with pytest.raises(InputError, match="too few"):
        prepare_pairs(pairs, tokenizer, Train(), seed=0)


def test_key_depends_on_every_token_and_on_the_context():
    pair = TokenizedPair([1, 2], [3], [4])
    others = [TokenizedPair([1], [2, 3], [4]), TokenizedPair([1, 2], [4], [3]), TokenizedPair([1, 2], [3], [5])]
    keys = {other.key({"model": "m"}) for other in [pair, *others]} | {pair.key({"model": "n"})}
    assert len(keys) == 5
    assert pair.key({"model": "m"}) == TokenizedPair([1, 2], [3], [4]).key({"model": "m"})


RELEASED_PAIRS = [
    *PAIRS[:3],
    PreferencePair("He called me a stu", "pid idiot!", "dent."),  # the prompt's last token merges on one side
    PreferencePair("The teacher " * 8, " sang", " slept"),  # over 12 tokens, and cut only if the pair is over 32
    PreferencePair("The teacher " * 8, " sang " * 20, " slept"),  # prompt and completion are cut
    PreferencePair("Oh", " sang " * 20, " slept"),  # the completion alone is too long
    PreferencePair("The teacher " * 8 + "stu", "pid idiot! " + " sang" * 20, "dent"),  # cut at different places
    PreferencePair("", "sang", "slept"),
]


@pytest.mark.parametrize("begins", [True, False])
def test_released_tokens_and_labels_are_those_of_trl_0_8_6(tiny_model, begins):
    from xgray.models.load import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    if not begins:
        tokenizer.bos_token = None
    for max_length, max_prompt_length in ((256, 64), (32, 12), (20, 16)):
        section = Train(
            validation_share=0,
            batch_size=1,
            tokenization="released",
            max_length=max_length,
            max_prompt_length=max_prompt_length,
        )
        prepared = prepare_pairs(RELEASED_PAIRS, tokenizer, section, seed=0)
        expected = [dpo_input(pair, tokenizer, max_length, max_prompt_length) for pair in RELEASED_PAIRS]
        assert [ids_and_labels(pair) for pair in prepared.train] == expected
        assert (prepared.num_truncated > 0) == (max_length < 256)


def test_released_tokenization_needs_room_for_completions(tokenizer):
    section = Train(tokenization="released", max_length=64, max_prompt_length=64)
    with pytest.raises(InputError, match=r"64 - 64.*Set train\.max_length"):
        prepare_pairs(PAIRS, tokenizer, section, seed=0)


def test_the_loss_counts_what_trl_0_8_6_counts(tiny_model):
    from xgray.models.load import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    section = Train(validation_share=0, batch_size=1, tokenization="released", max_length=32, max_prompt_length=12)
    pairs = prepare_pairs(RELEASED_PAIRS, tokenizer, section, seed=0).train
    assert any(pair.chosen_uncounted or pair.rejected_uncounted for pair in pairs)
    arranged = arrange(pairs, "padded", max_length=32)
    expected = [dpo_input(pair, tokenizer, 32, 12) for pair in RELEASED_PAIRS]
    sides = [pair["chosen"] for pair in expected] + [pair["rejected"] for pair in expected]
    assert arranged.rows == [ids for ids, _ in sides]
    counted = {(row, column + 1) for row, column in arranged.predictors}
    assert counted == {
        (row, column) for row, (_, labels) in enumerate(sides) for column, label in enumerate(labels) if label != -100
    }


@pytest.mark.parametrize("kind", ["bloom", "llama", "cohere"])
def test_released_lora_adapts_what_the_script_names_and_has_no_dropout(kind):
    from xgray.train.trainer import lora_config

    model = make_model(kind)
    config = lora_config(model, Train(method="lora", lora_targets="released", dropout="released", lora_dropout=0.25))
    assert set(config.target_modules) == lora_names(model, kind)
    assert ("lm_head" in config.target_modules) == (kind != "bloom")
    assert config.lora_dropout == 0
    assert lora_config(model, Train(method="lora", lora_dropout=0.25)).lora_dropout == 0.25
