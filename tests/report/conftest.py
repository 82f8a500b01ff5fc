import pytest
from markupsafe import Markup

from tests.report.example_run import write_run
from xgray.report.build import build_report, render
from xgray.report.examples import choose_examples
from xgray.report.files import RunFiles


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The report of a run of one variant and three languages: its folder."""
    run, experiment = write_run(tmp_path_factory.mktemp("built"))
    build_report(run, experiment)
    return run / "report"


@pytest.fixture
def page_of(tmp_path):
    """Writes a run as :func:`write_run` does and gives its page, without drawing the figures."""

    def build(**options):
        run, experiment = write_run(tmp_path, **options)
        files = RunFiles(run)
        shown = choose_examples(files, experiment.report.num_examples)
        return render(files, experiment, dict.fromkeys(("emt", "tox_prob", "avg_tox"), Markup()), shown, [])

    return build
