"""Trainings that cannot run are refused before they start."""

import pytest

from xgray.config import Train
from xgray.errors import InputError
from xgray.train.deepspeed import deepspeed_config
from xgray.train.feasible import StepShare, check_feasible, step_share


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": 4, "execution": {"num_workers": 3}},
            r"train\.batch_size: 4 pairs, accumulated 1 times, .* 3 workers",
        ),
        ({"method": "qlora"}, r"train\.method: qlora needs a CUDA device"),
        ({"method": "lora", "lora_targets": "released", "execution": {"strategy": "zero3"}}, r"train\.lora_targets"),
    ],
)
def test_infeasible_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        check_feasible(Train(**fields), cuda=False)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "num_workers", "share"),
    [
        (4, 1, 1, (4, 1)),
        (4, 1, 2, (2, 1)),
        (8, 3, 4, (2, 3)),
        (1, 4, 2, (1, 2)),
        (1, 4, 4, (1, 1)),
        (2, 4, 4, (1, 2)),
        (2, 16, 8, (1, 4)),
        (6, 2, 4, (1, 3)),  # twelve pairs: three for each worker, and no more at once than its part of a batch
        (12, 2, 8, None),  # the twelve held-out pairs of a validation's pass
        (4, 1, 8, None),
        (4, 1, 3, None),
    ],
)
def test_workers_share_a_step_of_the_same_pairs(batch_size, accumulation, num_workers, share):
    section = Train(batch_size=batch_size, gradient_accumulation=accumulation)
    found = step_share(section, num_workers)
    assert found == (StepShare(*share) if share else None)
    if found:
        assert found.batch_size * found.gradient_accumulation * num_workers == batch_size * accumulation
        assert found.batch_size <= batch_size


def test_qlora_is_allowed_on_cuda_but_not_with_zero3():
    check_feasible(Train(method="qlora", execution={"strategy": "zero2"}), cuda=True)
    with pytest.raises(InputError, match=r"train\.execution\.strategy"):
        check_feasible(Train(method="qlora", execution={"strategy": "zero3"}), cuda=True)


def test_zero3_gathers_weights_on_save_and_zero2_is_stage_2():
    zero = deepspeed_config("zero3", cuda=False)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_gather_16bit_weights_on_model_save"]
    assert deepspeed_config("zero2", cuda=True)["zero_optimization"]["stage"] == 2
