import pytest

from tests.report.example_run import write_run
from tests.report.page import page_without_figures
from xgray.report.build import build_report


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The report folder of a run with one variant and three languages."""
    run, experiment = write_run(tmp_path_factory.mktemp("built"))
    build_report(run, experiment)
    return run / "report"


@pytest.fixture
def page_of(tmp_path):
    """Write a run with :func:`write_run` and return its parsed page, without figures."""
    return lambda **options: page_without_figures(*write_run(tmp_path, **options))
