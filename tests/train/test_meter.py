"""What a step's numbers are made of: the work of a batch, and the seconds of its phases."""

import time

import pytest
import torch

from xgray.train.flops import ModelFlops
from xgray.train.meter import BatchWork, StepMeter, peak_memory


def test_numbers_are_added_up_over_batches_and_workers():
    meter = StepMeter(uses_cuda=False)
    meter.know(ModelFlops(token=10, head_position=100, attention_pair=1000), peak=5e6)
    meter.restart()
    meter.add(BatchWork(torch.tensor(8), 10, torch.tensor(2), 8, 50))
    meter.add(BatchWork(torch.tensor(6), 6, torch.tensor(0), 4, 18))
    meter.end_step()
    meter.measure(num_workers=3, sum_over_workers=lambda counts: 3 * counts)
    latest = meter.latest
    assert (latest["tokens"], latest["computed_tokens"]) == (42, 48)
    assert latest["padding_share"] == pytest.approx(6 / 48)
    assert latest["flops"] == 10 * 48 + 100 * 36 + 1000 * 204
    assert latest["mfu"] == pytest.approx(latest["flops"] / latest["seconds"] / (3 * 5e6))
    meter.end_step()
    meter.add(BatchWork(1, 1, 0, 0, 1))
    meter.measure(1, lambda counts: counts)
    assert meter.latest["tokens"] == 1, "batches of the last step do not count"


def test_a_model_of_unknown_flops_has_no_mfu():
    meter = StepMeter(uses_cuda=False)
    meter.restart()
    meter.add(BatchWork(1, 1, 0, 0, 1))
    meter.end_step()
    meter.measure(1, lambda counts: counts)
    assert "mfu" not in meter.latest


def test_phases_share_the_seconds_of_a_step_and_a_restart_leaves_out_what_was_before():
    meter = StepMeter(uses_cuda=False)
    meter.restart()
    time.sleep(0.05)
    start = time.perf_counter()
    assert meter.restart() >= 0.05
    for phase, seconds in (("data", 0.02), ("forward", 0.04), ("backward", 0.06), ("forward", 0.04), ("other", 0.03)):
        meter.begin(phase)
        time.sleep(seconds)
    meter.add(BatchWork(1, 1, 0, 0, 1))
    meter.end_step()
    passed = time.perf_counter() - start
    time.sleep(0.05)  # of the next step
    meter.measure(1, lambda counts: counts)
    latest = meter.latest
    least = {"data_seconds": 0.02, "forward_seconds": 0.08, "backward_seconds": 0.06, "optimizer_seconds": 0.0}
    phases = {name: value for name, value in latest.items() if name.endswith("_seconds")}
    assert phases.keys() == least.keys()
    assert all(phases[name] >= seconds for name, seconds in least.items())
    assert sum(phases.values()) + 0.03 <= latest["seconds"] <= passed
    assert phases["optimizer_seconds"] == 0


def test_peak_memory_counts_what_was_held_and_is_gone():
    before = peak_memory(uses_cuda=False)
    held = torch.ones(50_000_000)
    del held
    assert peak_memory(uses_cuda=False) >= before
    assert peak_memory(uses_cuda=False) > 2e8


def test_the_meter_costs_less_than_half_a_percent_of_a_step_of_a_tenth_of_a_second():
    meter = StepMeter(uses_cuda=False)
    meter.know(ModelFlops(1, 1, 1), 1.0)
    meter.restart()
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        for phase in ("data", "other", "forward", "backward", "optimizer"):
            meter.begin(phase)
        meter.add(BatchWork(1, 1, 0, 0, 1))
        meter.end_step()
        meter.measure(1, lambda counts: counts)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5e-4
