"""Held-out texts: whole groups, whole sources, the same whatever the order."""

import numpy as np
import pytest

from xgray.errors import InputError
from xgray.train.encoder.split import Part, connected_groups, split_texts

TEXTS = [f"text {index}" for index in range(200)]
NONE = np.zeros(len(TEXTS), bool)


def test_texts_are_together_by_equality_by_group_and_by_both():
    texts = ["Hello", " hello ", "Hallo", "Bonjour", "Salut", "alone"]
    groups = ["", "a", "a", "b", "b", ""]
    together = connected_groups(texts, groups)
    assert together[0] == together[1] == together[2]
    assert together[3] == together[4]
    assert len(set(together.tolist())) == 3


def split(texts=TEXTS, groups=None, is_test=NONE, is_held_out=NONE, share=0.2, seed=0):
    together = connected_groups(texts, groups or [""] * len(texts))
    return split_texts(texts, together, is_test, is_held_out, share, seed), together


def test_groups_are_never_cut_and_the_share_is_kept():
    groups = [str(index // 4) for index in range(200)]
    parts, together = split(groups=groups)
    for group in set(together.tolist()):
        assert len(set(parts[together == group].tolist())) == 1
    counts = np.bincount(parts, minlength=4)
    assert counts.tolist() == [160, 20, 20, 0]


def test_the_order_of_the_texts_does_not_matter_and_the_seed_does():
    parts, _ = split()
    backwards, _ = split(TEXTS[::-1])
    np.testing.assert_array_equal(backwards[::-1], parts)
    assert (split(seed=1)[0] != parts).any()


def test_a_source_that_is_held_out_is_tested_on_and_its_copies_are_removed():
    texts = [*TEXTS[:100], *[text.upper() for text in TEXTS[:10]]]
    is_test = np.arange(110) >= 100
    parts, _ = split(texts, is_test=is_test, is_held_out=np.zeros(110, bool))
    assert (parts[100:] == Part.TEST).all()
    assert (parts[:10] == Part.REMOVED).all()
    assert (parts[10:100] == Part.TRAIN).sum() == 72, "the share is of the other texts"


def test_texts_that_a_file_holds_out_are_never_trained_on():
    is_held_out = np.arange(200) < 60
    parts, _ = split(is_held_out=is_held_out)
    assert not (parts[:60] == Part.TRAIN).any()
    assert (parts[60:] == Part.TRAIN).all(), "they are more than the share already"


def training(tmp_path, **fields):
    from xgray.config import ScorerTraining

    rows = [f"{'You idiot' if index % 2 else 'Hello'} {index},{index % 2}" for index in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *rows, ""]))
    source = {"kind": "labelled", "path": str(tmp_path / "mine.csv"), "licence": "MIT", "language": "en"}
    values = {"name": "mine", "output": "out", "model": {"id": "none"}, "sources": [source], "batch_size": 8}
    return ScorerTraining.model_validate(values | fields)


def test_sources_with_too_little_are_refused(tmp_path):
    from xgray.train.encoder.prepare import check_texts, hold_out, read_sources

    def check(**fields):
        section = training(tmp_path, **fields)
        sources = read_sources(section)
        parts, _ = hold_out(section, sources)
        check_texts(section, np.concatenate([source.targets for source in sources]), parts)
        return parts

    assert np.bincount(check()).tolist() == [36, 2, 2]
    with pytest.raises(InputError, match="nothing can be learned of insult: no source judges it"):
        check(attributes=["toxicity", "insult"])
    with pytest.raises(InputError, match="36 texts to train on do not fill a batch of 64"):
        check(batch_size=64)
    twice = [source.model_dump() for source in training(tmp_path).sources] * 2
    with pytest.raises(InputError, match="two are called 'mine'"):
        check(sources=twice)
