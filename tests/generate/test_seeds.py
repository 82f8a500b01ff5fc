"""Seeds of prompts: what they depend on, and their range."""

from xgray.generate.seeds import prompt_seed


def test_seed_depends_on_the_experiment_the_language_and_the_prompt():
    assert prompt_seed(0, "en/1") == prompt_seed(0, "en/1")
    seeds = {
        prompt_seed(seed, f"{language}/{number}")
        for seed in (0, 1)
        for language in ("en", "de")
        for number in range(100)
    }
    assert len(seeds) == 400


def test_seeds_fill_62_bits_so_that_sample_numbers_can_be_added():
    largest = max(prompt_seed(0, f"en/{number}") for number in range(2000))
    assert 2**61 < largest < 2**62


def test_digits_of_seed_and_id_are_kept_apart():
    assert prompt_seed(1, "2/x") != prompt_seed(12, "/x")
