"""Activations over Ray: a unit of work is one language of one model, and one file of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from xgray.config import Activations, Neuron
from xgray.distributed.spread import Work, make_missing
from xgray.generate.engine import Weights
from xgray.mechanism.activation_rows import ActivationRows, rows_file, write_activations
from xgray.rows import Prompt
from xgray.runs import StageResult
from xgray.storage import Folder


def collect_activations(
    weights: Weights,
    neurons: Sequence[Neuron],
    section: Activations,
    prompts: Mapping[str, Sequence[Prompt]],
    rows: Folder,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageResult:
    """Write the rows of every language that has none yet. Ray must be up.

    Args:
        prompts: by language.
        on_progress: called with how many prompts are done, and how many there are.

    Raises:
        InputError: the model cannot be loaded, or a neuron is none of it.
        StageError: workers died again and again; the same call goes on where it stopped.
    """
    # The language with most prompts first, so that no worker is left with it at the end.
    languages = sorted(prompts, key=lambda language: -len(prompts[language]))
    units = [Work(rows_file(one), len(prompts[one]), (one, prompts[one])) for one in languages]
    arguments, num_workers = (weights, neurons, section, rows), section.execution.num_workers
    made = make_missing(ActivationWorker, arguments, units, rows, "activations", num_workers, on_progress)
    return StageResult({"num_prompts": made.total, "num_reused": made.reused}, device=made.device)


class ActivationWorker:
    """One copy of the model."""

    def __init__(self, weights: Weights, neurons: Sequence[Neuron], section: Activations, rows: Folder) -> None:
        from xgray.mechanism.neurons import check_neurons
        from xgray.models import load_causal_lm, load_tokenizer

        self.neurons, self.section, self.rows = neurons, section, rows
        self.tokenizer = load_tokenizer(weights.path, weights.revision)
        self.model = load_causal_lm(weights.path, weights.dtype, weights.revision)
        check_neurons(neurons, self.model, "activations.neurons")

    def work(self, unit: tuple[str, Sequence[Prompt]]) -> str:
        """Measure and write one language; the device."""
        from xgray.errors import InputError
        from xgray.mechanism.activations import measure_activations

        language, prompts = unit
        texts = [prompt.text for prompt in prompts]
        try:
            means, num_tokens = measure_activations(
                self.model,
                self.tokenizer,
                texts,
                self.neurons,
                self.section.new_tokens,
                self.section.execution.batch_size,
            )
        except InputError as error:
            raise InputError(f"activations: {language}: {error}") from None
        ids = [prompt.prompt_id for prompt in prompts]
        write_activations(self.rows, language, ActivationRows(ids, means, num_tokens))
        return str(self.model.device)
