from xgray.meter import Meter, duration


class Clock:
    """Seconds that the test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rate_is_of_this_attempt_and_leaves_out_the_start() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter("generate/base", 600, 1000)  # an earlier attempt's
    assert (meter.progress()["generate/base"].rate, meter.progress()["generate/base"].eta_seconds) == (None, None)
    clock.now += 100  # the engine starts, and makes its first block
    meter("generate/base", 610, 1000)
    assert meter.progress()["generate/base"].rate == 10 / 100
    clock.now += 10
    meter("generate/base", 630, 1000, errors=2)
    now = meter.progress()["generate/base"]
    assert (now.done, now.total, now.begun_with, now.errors) == (630, 1000, 600, 2)
    assert now.rate == 20 / 10
    assert now.eta_seconds == (1000 - 630) / 2


def test_what_goes_back_or_stands_still_gives_no_negative_rate() -> None:
    clock = Clock()
    meter = Meter(clock)
    for done in (0, 50, 40, 40):  # a training goes back to its checkpoint
        meter("train/dpo", done, 100)
    assert meter.progress()["train/dpo"].rate is None, "nothing is faster than the clock tells"
    clock.now += 5
    meter("train/dpo", 50, 100)
    assert meter.progress()["train/dpo"].rate == 2
    meter("train/dpo", 120, 100)
    clock.now += 5
    meter("train/dpo", 130, 100)
    assert meter.progress()["train/dpo"].eta_seconds == 0


def test_durations_are_short() -> None:
    assert [duration(one) for one in (0.4, 89, 600, 20_000)] == ["0 s", "89 s", "10 min", "5.6 h"]
