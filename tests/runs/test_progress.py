import pytest

from xgray.runs.progress import Meter, duration, rate_unit


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_leaves_out_earlier_attempts_and_the_start() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter("generate/base", 600, 1000)  # of an earlier attempt
    assert (meter.progress()["generate/base"].rate, meter.progress()["generate/base"].eta_seconds) == (None, None)
    clock.now += 100  # the engine starts and finishes its first block
    meter("generate/base", 610, 1000)
    assert meter.progress()["generate/base"].rate == 10 / 100
    clock.now += 10
    meter("generate/base", 630, 1000, errors=2)
    now = meter.progress()["generate/base"]
    assert (now.done, now.total, now.begun_with, now.errors) == (630, 1000, 600, 2)
    assert now.rate == 20 / 10
    assert now.eta_seconds == (1000 - 630) / 2


def test_a_training_that_goes_back_has_no_negative_rate() -> None:
    clock = Clock()
    meter = Meter(clock)
    for done in (0, 50, 40, 40):  # a training goes back to its checkpoint
        meter("train/dpo", done, 100)
    assert meter.progress()["train/dpo"].rate is None, "no time has passed"
    clock.now += 5
    meter("train/dpo", 50, 100)
    assert meter.progress()["train/dpo"].rate == 2
    meter("train/dpo", 120, 100)
    clock.now += 5
    meter("train/dpo", 130, 100)
    assert meter.progress()["train/dpo"].eta_seconds == 0


def test_a_standstill_is_reported_and_lowers_the_rate() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter("generate/base", 0, 1000)
    for done in (10, 20, 30):
        clock.now += 10
        meter("generate/base", done, 1000)
    clock.now += 59
    now = meter.progress()["generate/base"]
    assert (now.rate, now.standstill_seconds) == (1.0, None)
    clock.now += 6 * 3600 - 59
    now = meter.progress()["generate/base"]
    assert now.standstill_seconds == 6 * 3600
    assert now.rate == 20 / (20 + 6 * 3600)
    assert now.eta_seconds == 970 / now.rate
    meter("generate/base", 40, 1000)
    assert meter.progress()["generate/base"].standstill_seconds is None


def test_bursts_of_blocks_are_not_a_standstill() -> None:
    """Sixteen actors finish their blocks within seconds of each other, every ten minutes."""
    clock = Clock()
    meter = Meter(clock)
    done = 0
    for _ in range(3):
        clock.now += 600
        for _ in range(16):
            clock.now += 0.1
            done += 4
            meter("generate/base", done, 1000)
    clock.now += 1700
    assert meter.progress()["generate/base"].standstill_seconds is None
    clock.now += 200
    assert meter.progress()["generate/base"].standstill_seconds == 1900


def test_finished_and_waiting_stages_are_not_at_a_standstill() -> None:
    clock = Clock()
    meter = Meter(clock)
    for label, total in (("train/dpo", 5), ("generate/base", 1000), ("generate/dpo", 1000)):
        meter(label, 0, total)
    meter("train/dpo", 5, 5)
    for done in range(1, 100):
        clock.now += 30
        meter("generate/base", done, 1000)
    assert {stage.standstill_seconds for stage in meter.progress().values()} == {None}
    clock.now += 590
    standstills = {label: stage.standstill_seconds for label, stage in meter.progress().items()}
    assert standstills == {"train/dpo": None, "generate/base": 590, "generate/dpo": None}
    clock.now += 20
    standstills = {label: stage.standstill_seconds for label, stage in meter.progress().items()}
    assert standstills == {"train/dpo": None, "generate/base": 610, "generate/dpo": 610}


def test_durations_are_short() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 600, 20_000, 850_000)] == [
        "0 s",
        "89 s",
        "10.0 min",
        "5.6 h",
        "9.8 days",
    ]


@pytest.mark.parametrize(
    ("label", "unit"),
    [("train/dpo", " steps/s"), ("train/dpo: reference", " pairs/s"), ("train/dpo: loading", "/s"), ("generate", "/s")],
)
def test_a_rate_of_a_training_says_what_it_counts(label, unit):
    assert rate_unit(label) == unit
