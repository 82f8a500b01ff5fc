"""Pairs of messages are tokenized as TRL 1.16 does it, with the model's chat template, or as their contents."""

import logging

import pytest

from tests.train.tiny import PAIRS
from xgray.config import Train
from xgray.errors import InputError
from xgray.models.load import load_tokenizer
from xgray.rows import ChatPair, Message, PreferencePair
from xgray.train.pairs import prepare_pairs

SECTION = Train(validation_share=0, batch_size=1, max_length=512, max_prompt_length=256)

ANSWERS = "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
PLAIN = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'][0] }}>{{ message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}" + ANSWERS
)
WITHOUT_END = PLAIN.replace("{{ eos_token if message['role'] == 'assistant' else '\n' }}", "\n")
WITH_EMPTY_THOUGHT = PLAIN.replace("{{ '<a>' }}", "{{ '<a><think></think>' }}")
TEMPLATES = {"plain": PLAIN, "without an end": WITHOUT_END, "another generation prompt": WITH_EMPTY_THOUGHT}


def chat(*contents, system=None):
    """Messages of the user and the assistant in turn."""
    first = [Message("system", system)] if system else []
    roles = ("user", "assistant")
    return (*first, *(Message(roles[turn % 2], content) for turn, content in enumerate(contents)))


def answer(*contents):
    return tuple(Message(("assistant", "user")[turn % 2], content) for turn, content in enumerate(contents))


CHATS = [
    ChatPair(chat("The baker came home and"), answer(" said a kind word to me."), answer("called me a stupid idiot!")),
    ChatPair(chat("Hi", "Hello", "What?", system="Be kind."), answer("sang"), answer("slept", "Why?", "So.")),
    ChatPair(chat("x"), answer("a"), answer("b" * 40)),
]


@pytest.fixture
def chat_tokenizer(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = PLAIN
    return tokenizer


def ids_of(prepared):
    return [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in prepared.train]


def ids_of_trl(model, tokenizer, rows, folder):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from xgray.models.load import load_causal_lm

    arguments = DPOConfig(output_dir=str(folder), max_length=None, use_cpu=True, bf16=False, report_to="none")
    trainer = DPOTrainer(
        model=load_causal_lm(model, "float32"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]


def as_row(pair):
    return {name: [message._asdict() for message in getattr(pair, name)] for name in ("prompt", "chosen", "rejected")}


@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_of_messages_are_those_of_trl(tiny_model, chat_tokenizer, tmp_path, template):
    chat_tokenizer.chat_template = TEMPLATES[template]
    found = ids_of(prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0))
    assert found == ids_of_trl(tiny_model, chat_tokenizer, [as_row(pair) for pair in CHATS], tmp_path)


def test_tokens_of_texts_are_those_of_trl(tiny_model, tokenizer, tmp_path):
    texts = [*PAIRS[:2], PreferencePair("He called me a stu", "pid idiot!", "dent."), PreferencePair("x", "a", "b")]
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in texts]
    assert ids_of(prepare_pairs(texts, tokenizer, SECTION, seed=0)) == ids_of_trl(tiny_model, tokenizer, rows, tmp_path)


def test_the_prompt_ends_where_the_answer_begins_and_has_one_beginning(chat_tokenizer):
    first = prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0).train[0]
    assert chat_tokenizer.decode(first.prompt_ids) == "<s><u>The baker came home and\n<a>"
    assert chat_tokenizer.decode(first.chosen_ids) == "said a kind word to me.</s>"
    assert first.prompt_ids.count(chat_tokenizer.bos_token_id) == 1


def test_a_prompt_that_is_rendered_in_another_way_before_an_answer_is_named(chat_tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0)
        assert caplog.text == ""
        chat_tokenizer.chat_template = WITH_EMPTY_THOUGHT
        prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0)
    assert "3 of 3 prompts" in caplog.text


def test_without_the_template_the_contents_are_texts(chat_tokenizer):
    section = SECTION.model_copy(update={"chat_template": False})
    found = ids_of(prepare_pairs(CHATS, chat_tokenizer, section, seed=0))
    texts = [
        PreferencePair("The baker came home and\n", " said a kind word to me.", "called me a stupid idiot!"),
        PreferencePair("Be kind.\nHi\nHello\nWhat?\n", "sang", "slept\nWhy?\nSo."),
        PreferencePair("x\n", "a", "b" * 40),
    ]
    assert found == ids_of(prepare_pairs(texts, chat_tokenizer, SECTION, seed=0))
    chat_tokenizer.chat_template = None
    assert found == ids_of(prepare_pairs(CHATS, chat_tokenizer, section, seed=0))


def test_a_tokenizer_without_a_template_or_one_that_refuses_a_role_is_named(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}" + PLAIN
    with pytest.raises(InputError, match=r"roles system, user, .*: no system\. Set train\.chat_template: false"):
        prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0)
    chat_tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"no chat template\. Set train\.chat_template: false"):
        prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0)


def test_the_papers_tokenization_knows_no_messages(chat_tokenizer):
    section = SECTION.model_copy(update={"tokenization": "released"})
    with pytest.raises(InputError, match=r"Set train\.chat_template: false"):
        prepare_pairs(CHATS, chat_tokenizer, section, seed=0)
    texts = section.model_copy(update={"chat_template": False})
    assert len(prepare_pairs(CHATS, chat_tokenizer, texts, seed=0).train) == 3


def test_pairs_over_the_limit_are_dropped_and_a_prompt_may_have_one_token(chat_tokenizer):
    whole = ids_of(prepare_pairs(CHATS, chat_tokenizer, SECTION, seed=0))
    lengths = sorted(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in whole)
    assert lengths[1] < lengths[2]
    prepared = prepare_pairs(CHATS, chat_tokenizer, SECTION.model_copy(update={"max_length": lengths[1]}), seed=0)
    assert (len(prepared.train), prepared.num_dropped) == (2, 1)
    [pair] = prepare_pairs([PreferencePair("x", " a", " b")], chat_tokenizer, SECTION, seed=0).train
    assert len(pair.prompt_ids) == 1
