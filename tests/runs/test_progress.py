from xgray.runs.progress import Meter, duration


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


def test_a_standstill_lowers_the_rate_and_is_told() -> None:
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


def test_blocks_that_come_in_bursts_are_no_standstill() -> None:
    """Sixteen actors bring their blocks within seconds, every ten minutes."""
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


def test_what_is_complete_or_waits_for_its_turn_does_not_stand_still() -> None:
    clock = Clock()
    meter = Meter(clock)
    for label, total in (("train/dpo", 5), ("generate/base", 1000), ("generate/dpo", 1000)):
        meter(label, 0, total)
    meter("train/dpo", 5, 5)
    for done in range(1, 100):
        clock.now += 30
        meter("generate/base", done, 1000)
    assert {one.standstill_seconds for one in meter.progress().values()} == {None}
    clock.now += 590
    told = {label: one.standstill_seconds for label, one in meter.progress().items()}
    assert told == {"train/dpo": None, "generate/base": 590, "generate/dpo": None}
    clock.now += 20
    told = {label: one.standstill_seconds for label, one in meter.progress().items()}
    assert told == {"train/dpo": None, "generate/base": 610, "generate/dpo": 610}


def test_durations_are_short() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 600, 20_000, 850_000)] == [
        "0 s",
        "89 s",
        "10.0 min",
        "5.6 h",
        "9.8 days",
    ]
