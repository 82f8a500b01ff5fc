"""Agreement with people: hand-computed tables, independent implementations, and sets that fool nobody."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from xgray.data.ratings import LABEL_SCALE, TOXICITY_SCALE, RatedTexts, Ratings
from xgray.errors import InputError
from xgray.evaluate.agreement import agreement_table, compare, scale_in_words
from xgray.evaluate.agreement_file import (
    AVERAGE,
    FLOOR,
    Agreement,
    AgreementReport,
    Measured,
    read_table,
    validated_languages,
    write_table,
)

NAN = float("nan")
WORDS = ("you", "idiot", "stupid", "thanks", "a", "lot", "nice")


def text(random):
    """A text whose length and punctuation say nothing about its rating."""
    return " ".join(random.choice(WORDS, random.integers(4, 12))) + random.choice([".", "!", ""])


def rated(num, seed=0, num_raters=3, texts=None, scale=TOXICITY_SCALE, indices=None, sources=None):
    """Texts with a hidden toxicity in [0, 1], which each rater sees with an error; and the hidden toxicity."""
    random = np.random.default_rng(seed)
    hidden = random.random(num)
    seen = hidden[:, None] + random.normal(0, 0.15, (num, num_raters))
    ratings = np.clip(np.round(scale.from_unit(seen)), scale.low, scale.high)
    texts = texts(hidden, random) if texts else [text(random) for _ in range(num)]
    indices = indices or [str(index) for index in range(num)]
    return RatedTexts(texts, indices, sources or [""] * num, {"toxicity": ratings}), hidden


def ratings_of(scale=TOXICITY_SCALE, **languages):
    return Ratings("rated texts", {"toxicity": scale}, languages, 0)


def test_a_small_table_has_hand_computed_values():
    ratings = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 4.0], [5.0, 5.0], [2.0, 3.0]])  # means 1 1.5 3.5 5 2.5
    texts = RatedTexts(list("abcde"), list("12345"), [""] * 5, {"toxicity": ratings})
    scores = np.array([0.1, 0.3, 0.3, 0.9, 0.7])
    table = agreement_table(ratings_of(en=texts), {"toxicity": {"en": scores}}, resamples=50)["toxicity"]
    assert list(table) == ["en"], "one language has no average"
    found = table["en"]
    assert (found.num, found.num_toxic, found.num_benign) == (5, 2, 2)
    # Toxic .3 .9, harmless .1 .3: three pairs in order, one tied. The rating of 2.5 is of neither class.
    assert found.auc.value == pytest.approx(3.5 / 4)
    # Ratings on the unit scale: 0 .125 .625 1 .375.
    assert found.mean_absolute_error.value == pytest.approx(np.mean([0.1, 0.175, 0.325, 0.1, 0.325]))
    assert found.bias.value == pytest.approx(np.mean([0.1, 0.175, -0.325, -0.1, 0.325]))
    assert found.same_side.value == pytest.approx(3 / 5), "the third and the fifth are on different sides"
    # On the scale: scores 1.4 2.2 2.2 4.6 3.8, rounded 1 2 2 5 4; means 1 1.5 3.5 5 2.5, rounded 1 2 4 5 3.
    points = [1, 2, 2, 5, 4], [1, 2, 4, 5, 3]
    assert found.weighted_kappa.value == pytest.approx(
        cohen_kappa_score(*points, labels=[1, 2, 3, 4, 5], weights="quadratic")
    )
    assert found.spearman.value == pytest.approx(stats.spearmanr(scores, [1, 1.5, 3.5, 5, 2.5]).statistic)
    assert found.kendall.value == pytest.approx(stats.kendalltau(scores, [1, 1.5, 3.5, 5, 2.5]).statistic)
    assert found.ceiling.value == pytest.approx(stats.spearmanr(ratings[:, 0], ratings[:, 1]).statistic)


def test_the_ceiling_is_one_rater_against_the_mean_of_the_others():
    texts, hidden = rated(80)
    comparison = compare(ratings_of(en=texts), {"mine": {"toxicity": {"en": hidden}}}, resamples=50)
    raters = texts.ratings["toxicity"]
    each = [stats.spearmanr(raters[:, at], np.delete(raters, at, axis=1).mean(axis=1)).statistic for at in range(3)]
    found = comparison.raters["toxicity"]["en"]
    assert found.spearman.value == pytest.approx(np.mean(each))
    assert comparison.scorers["mine"]["toxicity"]["en"].ceiling == found.spearman
    others = [np.delete(raters, at, axis=1).mean(axis=1) for at in range(3)]
    areas = [
        roc_auc_score((other >= 3)[(other >= 3) | (other < 2)], raters[(other >= 3) | (other < 2), at])
        for at, other in enumerate(others)
    ]
    assert found.auc.value == pytest.approx(np.mean(areas))


def test_one_rater_leaves_no_ceiling_and_all_else():
    texts, hidden = rated(60, num_raters=1)
    comparison = compare(ratings_of(en=texts), {"mine": {"toxicity": {"en": hidden}}}, resamples=50)
    assert comparison.raters == {}
    found = comparison.scorers["mine"]["toxicity"]["en"]
    assert found.ceiling is None
    assert found.spearman.value > 0.8


def test_raters_who_skip_texts_count_where_they_rated():
    texts, hidden = rated(80)
    raters = texts.ratings["toxicity"]
    raters[::4, 0], raters[:10, 1:] = NAN, NAN
    raters[0, 0] = NAN
    found = agreement_table(ratings_of(en=texts), {"toxicity": {"en": hidden}}, resamples=50)["toxicity"]["en"]
    assert found.num == 77, "three texts have no rating left"
    kept = ~np.isnan(raters).all(axis=1)
    assert found.spearman.value == pytest.approx(stats.spearmanr(hidden[kept], np.nanmean(raters[kept], axis=1))[0])
    assert 0 < found.ceiling.value < 1


def test_the_average_counts_languages_alike_and_translations_are_drawn_together():
    english, hidden = rated(120, seed=1)
    german = RatedTexts(english.texts, english.indices, english.sources, english.ratings)
    scores = {"toxicity": {"de": hidden, "en": hidden}}
    together = agreement_table(ratings_of(de=german, en=english), scores)["toxicity"]
    assert list(together) == ["de", "en", AVERAGE]
    assert together[AVERAGE].spearman.value == pytest.approx(together["en"].spearman.value)
    assert together[AVERAGE].num == 240
    width = together["en"].spearman.high - together["en"].spearman.low
    assert together[AVERAGE].spearman.high - together[AVERAGE].spearman.low == pytest.approx(width)
    apart = RatedTexts(german.texts, [f"other {index}" for index in german.indices], german.sources, german.ratings)
    average = agreement_table(ratings_of(de=apart, en=english), scores)["toxicity"][AVERAGE].spearman
    assert average.high - average.low == pytest.approx(width / np.sqrt(2), rel=0.15)


def test_missing_scores_are_left_out_and_counted():
    texts, hidden = rated(60)
    with_gaps = np.where(np.arange(60) % 6 == 0, NAN, hidden)
    found = agreement_table(ratings_of(en=texts), {"toxicity": {"en": with_gaps}}, resamples=50)["toxicity"]["en"]
    assert (found.num, found.num_missing) == (50, 10)
    kept = ~np.isnan(with_gaps)
    means = texts.ratings["toxicity"].mean(axis=1)
    assert found.spearman.value == pytest.approx(stats.spearmanr(hidden[kept], means[kept]).statistic)


def test_an_undefined_figure_has_a_reason_and_the_average_names_its_language():
    constant = rated(40)[0]
    texts, hidden = rated(40, seed=1)
    scores = {"toxicity": {"de": np.full(40, 0.3), "en": hidden}}
    table = agreement_table(ratings_of(de=constant, en=texts), scores, resamples=100)["toxicity"]
    assert table["de"].spearman.value is None
    assert "equal" in table["de"].spearman.reason
    assert table[AVERAGE].spearman.value == pytest.approx(table["en"].spearman.value)
    assert table[AVERAGE].spearman.reason == "without de"
    json.dumps(write_table(table and {"toxicity": table}), allow_nan=False)


def test_scores_of_nothing_have_an_agreement_of_nothing():
    texts, _ = rated(200)
    noise = np.random.default_rng(9).random(200)
    found = agreement_table(ratings_of(en=texts), {"toxicity": {"en": noise}})["toxicity"]["en"]
    assert found.spearman.low < 0 < found.spearman.high
    assert found.auc.low < 0.5 < found.auc.high
    assert found.weighted_kappa.low < 0 < found.weighted_kappa.high
    assert found.no_better_than
    assert not found.solved_by, "the set itself is none that can be solved without reading"


def long_if_toxic(hidden, random):
    return [text(random) + " and so on" * (10 if toxic > 0.5 else 0) for toxic in hidden]


def shouting_if_toxic(hidden, random):
    return [text(random).upper() if toxic > 0.5 else text(random) for toxic in hidden]


@pytest.mark.parametrize(("texts", "by"), [(long_if_toxic, "length"), (shouting_if_toxic, "upper case")])
def test_a_set_that_can_be_told_apart_without_reading_is_called_so(texts, by):
    rated_texts, hidden = rated(300, texts=texts)
    comparison = compare(ratings_of(en=rated_texts), {"mine": {"toxicity": {"en": hidden}}}, resamples=200)
    found = comparison.scorers["mine"]["toxicity"]["en"]
    assert found.spearman.value > FLOOR.spearman
    assert found.auc.value > FLOOR.auc
    baselines = comparison.baselines["toxicity"]["en"]
    assert baselines[by].value > 0.9
    assert baselines["together"].value > 0.9
    assert found.solved_by
    assert comparison.validated("mine") == {"toxicity": []}, "an agreement on such a set validates nothing"


def test_a_set_whose_source_tells_the_label_is_called_so():
    random = np.random.default_rng(3)
    toxic = np.arange(200) % 2 == 0
    sources = ["forum" if label else "news" for label in toxic]
    texts = RatedTexts(
        [text(random) for _ in toxic], list(map(str, range(200))), sources, {"toxicity": toxic[:, None].astype(float)}
    )
    ratings = ratings_of(LABEL_SCALE, de=texts)
    scores = {"toxicity": {"de": np.clip(toxic * 0.3 + random.random(200) * 0.7, 0, 1)}}
    comparison = compare(ratings, {"mine": scores}, resamples=100)
    assert comparison.baselines["toxicity"]["de"]["source"].value == 1
    assert comparison.baselines["toxicity"]["de"]["source"].low < 1
    assert comparison.scorers["mine"]["toxicity"]["de"].solved_by.startswith(("source", "together"))


def test_an_honest_set_is_not_accused_and_validates_a_good_scorer():
    texts, hidden = rated(300)
    comparison = compare(ratings_of(en=texts), {"mine": {"toxicity": {"en": hidden}}}, resamples=200)
    found = comparison.scorers["mine"]["toxicity"]["en"]
    assert all(value.value < 0.7 for value in comparison.baselines["toxicity"]["en"].values())
    assert found.solved_by is found.no_better_than is None
    assert comparison.validated("mine") == {"toxicity": ["en"]}


def test_on_labels_the_weighted_kappa_is_cohens():
    texts, hidden = rated(100, num_raters=1, scale=LABEL_SCALE)
    found = agreement_table(ratings_of(LABEL_SCALE, en=texts), {"toxicity": {"en": hidden}}, resamples=50)
    labels = texts.ratings["toxicity"][:, 0]
    assert found["toxicity"]["en"].weighted_kappa.value == pytest.approx(cohen_kappa_score(hidden >= 0.5, labels))
    assert found["toxicity"]["en"].same_side.value == pytest.approx(np.mean((hidden >= 0.5) == labels))


def test_each_attribute_that_is_both_rated_and_scored_has_a_table():
    texts, hidden = rated(60)
    votes = (texts.ratings["toxicity"] >= 4).astype(float)
    votes[:5] = NAN  # these texts are not rated for the attribute
    both = RatedTexts(texts.texts, texts.indices, texts.sources, texts.ratings | {"severe_toxicity": votes})
    ratings = Ratings("rated texts", {"toxicity": TOXICITY_SCALE, "severe_toxicity": LABEL_SCALE}, {"en": both}, 0)
    scores = {name: {"en": hidden} for name in ("severe_toxicity", "toxicity", "profanity")}
    table = agreement_table(ratings, scores, resamples=50)
    assert list(table) == ["toxicity", "severe_toxicity"], "nobody rated profanity"
    severe = table["severe_toxicity"]["en"]
    assert severe.num == 55
    means = votes[5:].mean(axis=1)
    assert (severe.num_toxic, severe.num_benign) == ((means >= 0.5).sum(), (means == 0).sum())
    assert severe.spearman.value == pytest.approx(stats.spearmanr(hidden[5:], means).statistic)


def test_intervals_depend_on_the_seed_alone():
    texts, hidden = rated(60)
    first, again, other = (
        agreement_table(ratings_of(en=texts), {"toxicity": {"en": hidden}}, resamples=100, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first["toxicity"]["en"].spearman.low != other["toxicity"]["en"].spearman.low


def test_scales_state_their_cuts():
    assert scale_in_words(TOXICITY_SCALE) == "1 to 5; AUC of means >= 3 against < 2"


def agreement(num=871, spearman=0.6, auc=0.9, **fields):
    return Agreement(num=num, spearman=Measured(value=spearman), auc=Measured(value=auc), **fields)


def test_the_floor_asks_for_texts_and_both_measures():
    table = {
        "toxicity": {
            "en": agreement(),
            "de": agreement(num=FLOOR.num - 1),
            "fr": agreement(spearman=FLOOR.spearman - 0.01),
            "it": agreement(auc=FLOOR.auc - 0.01),
            "es": agreement(spearman=FLOOR.spearman, auc=FLOOR.auc, num=FLOOR.num),
            "ja": agreement(spearman=None),
            "ko": agreement(solved_by="length: AUC .950"),
            "nl": agreement(no_better_than="length: AUC .790"),
            AVERAGE: agreement(),
        }
    }
    assert validated_languages(table) == ["en", "es"]
    assert validated_languages(table, "insult") == []


def test_a_table_is_read_as_it_was_written():
    texts, hidden = rated(40)
    table = agreement_table(ratings_of(en=texts), {"toxicity": {"en": hidden}}, resamples=50)
    written = json.loads(json.dumps(write_table(table)))
    assert set(written["toxicity"]["en"]["spearman"]) == {"value", "low", "high"}
    assert read_table(written, "card.json") == table
    with pytest.raises(InputError, match=r"card.json: no agreement table: toxicity.en.auc: Field required"):
        read_table({"toxicity": {"en": {"num": 3, "spearman": {"value": 0.5}}}}, "card.json")


def test_a_report_is_read_as_it_was_written():
    report = AgreementReport(
        scorer="mine", scorer_version="1", agreement_data="rated texts", fingerprint="0" * 64, num_raters=3,
        scales={"toxicity": "1 to 5"}, agreement={"toxicity": {"en": agreement()}}, raters={}, others={}, baselines={},
        validated={"toxicity": ["en"]},
    )  # fmt: skip
    assert AgreementReport.model_validate_json(report.model_dump_json(exclude_none=True)) == report
