"""The phases of a training: what the workers report, and what the driver reads."""

from xgray.distributed.train_control import LOADING, STARTING, STEPS, Phase, PhaseReporter, TrainControl
from xgray.runs.progress import REFERENCE


class Direct:
    """A control in this process, called as a Ray actor is."""

    def __init__(self):
        self.control = TrainControl()
        self.reports = []
        self.report = self

    def remote(self, phase):
        self.reports.append(phase)
        self.control.report(phase)


def test_a_phase_completes_those_before_it():
    control = TrainControl()
    assert control.phases() == [Phase(STARTING, 0, 1)]
    control.report(Phase(LOADING))
    control.report(Phase(REFERENCE, 8, 20))
    assert control.phases() == [Phase(STARTING, 1, 1), Phase(LOADING, 1, 1), Phase(REFERENCE, 8, 20)]
    control.report(Phase(STEPS))
    assert control.phases()[2:] == [Phase(REFERENCE, 20, 20), Phase(STEPS, 0, 1)]


def test_lost_workers_begin_again():
    control = TrainControl()
    control.report(Phase(LOADING))
    control.workers_lost()
    assert control.phases() == [Phase(STARTING, 0, 1)]
    assert control.is_waiting()


def test_the_first_worker_reports_new_phases_their_ends_and_little_in_between():
    direct = Direct()
    report = PhaseReporter(direct, rank=0)
    report(LOADING)
    for done in range(1, 101):
        report(REFERENCE, done, 100)
    assert direct.reports[:2] == [Phase(LOADING), Phase(REFERENCE, 1, 100)]
    assert direct.reports[-1] == Phase(REFERENCE, 100, 100)
    assert len(direct.reports) < 10


def test_other_workers_report_nothing():
    direct = Direct()
    PhaseReporter(direct, rank=1)(LOADING)
    assert direct.reports == []
