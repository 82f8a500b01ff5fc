import numpy as np
import pytest
from scipy.stats import gaussian_kde

from tests.report.example_run import CHANGES, write_run
from xgray.report.figures import bars, density, drawing, training_curves
from xgray.report.files import RunFiles

ENGLISH = {"en": CHANGES["en"]}


def test_density_integrates_to_one_about_its_centre():
    grid = np.linspace(-6, 8, 161)
    curve = density(np.random.default_rng(1).normal(1.0, 0.7, 4000), grid)
    step = grid[1] - grid[0]
    assert curve.sum() * step == pytest.approx(1, abs=0.01)
    assert (curve * grid).sum() * step == pytest.approx(1.0, abs=0.05)
    assert curve.max() == pytest.approx(1 / (0.7 * np.sqrt(2 * np.pi)), rel=0.05)


def test_density_is_scipys_with_silvermans_bandwidth():
    values = np.array([-1.0, 0.0, 0.2, 0.5, 0.6, 1.0, 2.0, 4.0])
    grid = np.linspace(-6, 8, 1401)
    quartiles = np.quantile(values, [0.25, 0.75])
    bandwidth = 0.9 * min(values.std(), (quartiles[1] - quartiles[0]) / 1.34) * 8**-0.2
    expected = gaussian_kde(values, bandwidth / values.std(ddof=1))(grid)
    assert density(values, grid) == pytest.approx(expected)


def test_density_of_equal_values_is_a_peak():
    grid = np.linspace(0, 2, 161)
    assert grid[density(np.full(5, 1.0), grid).argmax()] == pytest.approx(1.0)


def test_languages_are_sorted_by_their_change_below_the_average(tmp_path):
    run, _ = write_run(tmp_path)
    with drawing():
        figure = bars(RunFiles(run), "emt")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Average", "English", "Arabic", "German"]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths[2:4] == pytest.approx([0.553, 0.321])
    assert [text.get_text() for text in axes.texts] == ["", "▼", "", "▼", "", "▼", "", ""]


def test_missing_bar_is_labelled(tmp_path):
    def edit(metrics):
        metrics["models"]["base"]["languages"]["en"]["emt"] = {"value": None, "low": None, "high": None, "reason": "x"}

    run, _ = write_run(tmp_path, changes=ENGLISH, edit=edit)
    with drawing():
        figure = bars(RunFiles(run), "emt")
    assert [text.get_text().strip() for text in figure.axes[0].texts].count("no value") == 1


@pytest.mark.parametrize("has_ln_2", [True, False])
def test_ln_2_is_drawn_for_the_sigmoid_loss_only(tmp_path, has_ln_2):
    run, _ = write_run(tmp_path, changes=ENGLISH)
    with drawing():
        figure = training_curves(RunFiles(run), has_ln_2)
    assert [text.get_text() for text in figure.axes[0].texts] == ["ln 2"] * has_ln_2
