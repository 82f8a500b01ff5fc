import json

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from xgray.errors import InputError
from xgray.score.calibration.agreement import agreement
from xgray.score.calibration.curves import Pairs, calibration_rows, fit_calibration, read_calibration, write_calibration
from xgray.score.scorer import ScorerId
from xgray.stats.isotonic import (
    crossing,
    crossing_statistic,
    fit_knots,
    interpolate,
    predict_out_of_fold,
    threshold_image,
)

NAN = float("nan")
SCORER, TARGET = ScorerId("embedding", "1"), ScorerId("perspective", "v1alpha1")


def make_scores(num, seed=0, middle=0.3):
    """Return raw scores, and targets whose mean is .5 where the raw score is ``middle``."""
    random = np.random.default_rng(seed)
    raw = random.beta(1, 2, num)
    mean = expit(8 * (raw - middle))
    return raw, random.beta(5 * mean, 5 * (1 - mean))


def make_pairs(num, seed=0, middle=0.3):
    raw, target = make_scores(num, seed, middle)
    return Pairs([f"text {index}" for index in range(num)], {"toxicity": raw}, {"toxicity": target})


def calibrate(by_language, date="2026-01-31", attributes=("toxicity",)):
    return fit_calibration(by_language, SCORER, TARGET, date, attributes=attributes, resamples=100)


def test_the_map_pools_targets_that_descend():
    # .6 .2 .4 descend and are pooled to .4; then .1 .4 .4 .4 .9 ascend.
    raw = np.array([0.5, 0.2, 0.1, 0.9, 0.3])
    target = np.array([0.4, 0.6, 0.1, 0.9, 0.2])
    x, y = fit_knots(raw, target)
    assert x.tolist() == [0.1, 0.2, 0.5, 0.9]
    assert y.tolist() == pytest.approx([0.1, 0.4, 0.4, 0.9])
    assert interpolate(np.array([0.0, 0.15, 0.3, 0.7, 1.0]), x, y) == pytest.approx([0.1, 0.25, 0.4, 0.65, 0.9])


def test_equal_raw_scores_are_mapped_to_their_targets_mean():
    x, y = fit_knots(np.array([0.1, 0.1, 0.8]), np.array([0.2, 0.4, 1.0]))
    assert (x.tolist(), y.tolist()) == ([0.1, 0.8], pytest.approx([0.3, 1.0]))


def test_interpolation_agrees_with_scikit_learn_and_never_descends():
    raw, target = make_scores(300)
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, target)
    grid = np.linspace(0, 1, 1001)
    mapped = interpolate(grid, *fit_knots(raw, target))
    assert mapped == pytest.approx(fitted.predict(grid))
    assert (np.diff(mapped) >= 0).all()


def test_an_out_of_fold_score_does_not_depend_on_its_target():
    raw, target = make_scores(60)
    before = predict_out_of_fold(raw, target)
    changed = target.copy()
    changed[7] = 1 - changed[7]
    after = predict_out_of_fold(raw, changed)
    assert after[7] == before[7]
    assert (after[2::5] == before[2::5]).all()
    assert (after != before).any()
    others = np.arange(60) % 5 != 2
    expected = IsotonicRegression(out_of_bounds="clip").fit(raw[others], target[others]).predict(raw[7:8])
    assert before[7:8] == pytest.approx(expected)


def test_crossing_agrees_with_hand_computed_values():
    x, y = np.array([0.1, 0.2, 0.5, 0.9]), np.array([0.1, 0.4, 0.4, 0.9])
    assert crossing(x, y, 0.5) == pytest.approx(0.5 + 0.4 * 0.1 / 0.5)
    assert crossing(x, y, 0.4) == 0.2  # the lowest of a flat stretch
    assert crossing(x, y, 0.95) is None
    assert crossing(x, y, 0.1) is None


def test_the_crossings_of_resamples_agree_with_a_regression_fitted_to_each():
    raw, target = make_scores(80)
    raw = raw.round(2)  # with ties
    positions = np.random.default_rng(0).integers(0, 80, (30, 80))
    crossings = crossing_statistic(raw, target, 0.5)(positions)
    expected = [crossing(*fit_knots(raw[row], target[row]), 0.5) for row in positions]
    assert crossings == pytest.approx(expected)


def test_a_map_that_never_reaches_the_threshold_has_no_image():
    raw, target = make_scores(200)
    below = threshold_image(raw, target / 3, 0.5, 0.95, 100, (0, 0))
    assert below.value is None
    assert "all below 0.5" in below.reason
    assert "at or above" in threshold_image(raw, 1 - target / 3, 0.5, 0.95, 100, (0, 0)).reason
    # Few texts reach the threshold. In some resamples none does, and the interval ends at 1.
    scarce = np.append(np.linspace(0, 0.4, 40), [0.9, 0.95])
    image = threshold_image(scarce, np.append(np.full(40, 0.2), [0.55, 0.55]), 0.5, 0.95, 200, (0, 0))
    assert image.value < image.high == 1


def test_the_thresholds_interval_covers_the_true_value_at_its_nominal_rate():
    covered = 0
    for repeat in range(150):
        image = threshold_image(*make_scores(200, seed=repeat), 0.5, 0.95, 200, (repeat, 0))
        covered += image.low <= 0.3 <= image.high
    assert 0.89 <= covered / 150 <= 0.99


def test_agreement_after_calibration_is_measured_out_of_fold():
    calibration = calibrate({"en": make_pairs(400)})
    curve = calibration.languages["en"]["toxicity"]
    raw, target = make_scores(400)
    assert curve.num_pairs == 400
    assert curve.threshold.low < 0.3 < curve.threshold.high
    before = curve.agreement.raw
    assert before.spearman.value == pytest.approx(stats.spearmanr(raw, target).statistic)
    assert before.mean_absolute_difference.value == pytest.approx(np.abs(raw - target).mean())
    # Calibrated scores are closer to the target, and reach the threshold together with it more often. Their order is
    # nearly the same.
    after = curve.agreement.calibrated
    assert after.mean_absolute_difference.high < before.mean_absolute_difference.low
    assert after.kappa.value > before.kappa.value + 0.1
    assert after.spearman.value == pytest.approx(before.spearman.value, abs=0.03)
    # The error on new texts is the same as out of fold; on the fitted texts it would be smaller.
    fresh_raw, fresh_target = make_scores(4000, seed=1)
    fresh = agreement(curve.apply(fresh_raw), fresh_target, resamples=100).mean_absolute_difference
    assert after.mean_absolute_difference.low < fresh.value < after.mean_absolute_difference.high


def test_each_language_has_its_own_map():
    calibration = calibrate({"zh-hans": make_pairs(200, middle=0.15), "en": make_pairs(200, middle=0.5)})
    assert list(calibration.languages) == ["en", "zh-hans"]
    images = {code: curves["toxicity"].threshold.value for code, curves in calibration.languages.items()}
    assert images == {"en": pytest.approx(0.5, abs=0.06), "zh-hans": pytest.approx(0.15, abs=0.06)}
    alone = calibrate({"en": make_pairs(200, middle=0.5)})
    assert alone.languages["en"] == calibration.languages["en"]


def test_the_same_pairs_give_the_same_calibration_in_any_order():
    pairs = make_pairs(150)
    order = np.random.default_rng(3).permutation(150)
    mixed = Pairs(
        [pairs.keys[row] for row in order],
        {"toxicity": pairs.raw["toxicity"][order]},
        {"toxicity": pairs.target["toxicity"][order]},
    )
    first, second = calibrate({"en": pairs}), calibrate({"en": mixed}, date="2026-02-01")
    assert first.model_dump_json(exclude={"data"}) == second.model_dump_json(exclude={"data"})
    assert first.data.fingerprint == second.data.fingerprint
    assert first.version == second.version
    pairs.target["toxicity"][0] += 1e-9
    changed = calibrate({"en": pairs})
    assert changed.data.fingerprint != first.data.fingerprint
    assert changed.version != first.version


def test_pairs_with_a_missing_score_are_left_out_for_each_attribute():
    whole = make_pairs(100)
    raw, target = whole.raw["toxicity"], whole.target["toxicity"]
    insult = np.where(np.arange(100) < 60, raw**2, NAN)
    with_gap = np.where(np.arange(100) == 99, NAN, raw)
    calibration = calibrate(
        {"en": Pairs(whole.keys, {"toxicity": with_gap, "insult": insult}, {"toxicity": target, "insult": target})},
        attributes=["toxicity", "insult"],
    )
    curves = calibration.languages["en"]
    assert (curves["toxicity"].num_pairs, curves["insult"].num_pairs, calibration.data.num_pairs) == (99, 60, 99)
    assert curves["insult"].threshold.value < curves["toxicity"].threshold.value


def test_languages_with_too_few_pairs_are_left_out_with_the_reason():
    few, benign = make_pairs(30), make_pairs(80)
    quiet = Pairs(benign.keys, benign.raw, {"toxicity": benign.target["toxicity"] * 0.4})
    calibration = calibrate({"en": make_pairs(100), "de": few, "fr": quiet})
    assert calibration.left_out == {
        "de": "toxicity: 30 pairs of the 50 needed",
        "fr": "toxicity: 0 of 80 pairs have a target at or above 0.5, 5 are needed",
    }
    rows = calibration_rows(calibration)
    assert [(row.language, row.num_pairs, row.reason) for row in rows] == [
        ("de", None, calibration.left_out["de"]),
        ("en", 100, None),
        ("fr", None, calibration.left_out["fr"]),
    ]
    assert rows[1].threshold == calibration.languages["en"]["toxicity"].threshold
    with pytest.raises(InputError, match=r"no language can be calibrated.*de: toxicity: 30 pairs"):
        calibrate({"de": few})


def test_a_file_keeps_every_digit_of_a_calibration(tmp_path):
    calibration = calibrate({"en": make_pairs(120), "de": make_pairs(20)})
    path = str(tmp_path / "sub" / "calibration.json")
    write_calibration(path, calibration)
    again = read_calibration(path)
    assert again == calibration
    grid = np.linspace(0, 1, 333)
    curves = [loaded.languages["en"]["toxicity"] for loaded in (calibration, again)]
    assert curves[0].apply(grid).tobytes() == curves[1].apply(grid).tobytes()
    content = json.loads((tmp_path / "sub" / "calibration.json").read_bytes())
    assert content["version"] == calibration.version
    assert content["data"]["num_pairs"] == 140
    assert read_calibration(f"file://{path}") == calibration


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    write_calibration(str(folder / "calibration.json"), calibrate({"en": make_pairs(80)}))
    return (folder / "calibration.json").read_text()


def put(value, *place):
    """Return a function that sets a value in a file's contents."""

    def change(contents):
        for key in place[:-1]:
            contents = contents[key]
        contents[place[-1]] = value

    return change


CURVE = ("languages", "en", "toxicity")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(2, "format"), r"format 2 is newer"),
        (put("xgray head", "kind"), r"no calibration file: kind"),
        (put([0.1, 0.3, 0.2], *CURVE, "x"), r"languages\.en\.toxicity: x holds 3 knots, y \d+"),
        (lambda value: value["languages"]["en"]["toxicity"]["x"].reverse(), r"languages\.en\.toxicity: x must ascend"),
        (lambda value: value["languages"]["en"]["toxicity"]["y"].reverse(), r"toxicity: y must not descend"),
        (put(1.5, *CURVE, "y", -1), r"languages\.en\.toxicity\.y: a list of numbers from 0 to 1"),
        (put(NAN, *CURVE, "x", 0), r"languages\.en\.toxicity\.x: a list of numbers from 0 to 1"),
        (put("0.1", *CURVE, "x", 0), r"languages\.en\.toxicity\.x: a list of numbers"),
        (put([], *CURVE, "y"), r"languages\.en\.toxicity\.y: a list of numbers"),
        (put(NAN, *CURVE, "threshold", "value"), r"threshold\.value"),
        (lambda value: value["languages"]["en"].pop("toxicity"), r"languages\.en holds"),
        (lambda value: value["languages"].update(xx=value["languages"].pop("en")), r"languages\.xx: not one of"),
        (lambda value: value.pop("scorer_version"), r"scorer_version: Field required"),
        (put("all", "more"), r"unknown key 'more'"),
        (put(0.0, *CURVE, "x", 0), r"version: \w{12} is that of other contents"),
        (put("2", "scorer_version"), r"version: \w{12} is that of other contents"),
    ],
)
def test_a_wrong_calibration_file_is_refused_with_its_name_and_field(tmp_path, content, change, message):
    value = json.loads(content)
    change(value)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(value))
    with pytest.raises(InputError, match=rf"bad\.json: .*{message}"):
        read_calibration(str(file))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"3"])
def test_a_file_that_is_not_json_is_refused(tmp_path, text):
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(InputError, match=r"bad\.json: no calibration file"):
        read_calibration(str(tmp_path / "bad.json"))


def test_a_missing_calibration_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot read the calibration"):
        read_calibration(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="cannot read the calibration"):
        read_calibration(str(tmp_path))
