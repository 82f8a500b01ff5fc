import numpy as np
import pytest

from tests.report.example_run import CHANGES, write_run
from xgray.report.figures import bars, density, drawing, training_curves
from xgray.report.files import RunFiles
from xgray.report.metrics import METRICS


def labels(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_density_integrates_to_one_about_its_centre():
    grid = np.linspace(-6, 8, 161)
    curve = density(np.random.default_rng(1).normal(1.0, 0.7, 4000), grid)
    step = grid[1] - grid[0]
    assert curve.sum() * step == pytest.approx(1, abs=0.01)
    assert (curve * grid).sum() * step == pytest.approx(1.0, abs=0.05)
    assert curve.max() == pytest.approx(1 / (0.7 * np.sqrt(2 * np.pi)), rel=0.05)


def test_density_of_equal_values_is_a_peak():
    grid = np.linspace(0, 2, 161)
    assert grid[density(np.full(5, 1.0), grid).argmax()] == pytest.approx(1.0)


def test_languages_stand_in_order_of_change_below_the_average(tmp_path):
    run, _ = write_run(tmp_path)
    with drawing():
        figure = bars(RunFiles(run), METRICS["emt"])
    assert labels(figure) == ["Average", "English", "Arabic", "German"]
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths[2:4] == pytest.approx([0.553, 0.321])
    signs = [one.get_text() for one in figure.axes[0].texts]
    assert signs == ["", "▼", "", "▼", "", "▼", "", ""]


def test_bar_without_a_value_says_so(tmp_path):
    def edit(metrics):
        metrics["models"]["base"]["languages"]["en"]["emt"] = {"value": None, "low": None, "high": None, "reason": "x"}

    run, _ = write_run(tmp_path, changes={"en": CHANGES["en"]}, edit=edit)
    with drawing():
        figure = bars(RunFiles(run), METRICS["emt"])
    assert " no value" in [one.get_text() for one in figure.axes[0].texts]


def test_ln_2_is_drawn_for_the_sigmoid_loss_only(tmp_path):
    run, _ = write_run(tmp_path, changes={"en": CHANGES["en"]})
    with drawing():
        told = [training_curves(RunFiles(run), has_ln_2=has).axes[0].texts for has in (True, False)]
    assert [len(one) for one in told] == [1, 0]
