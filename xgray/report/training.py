"""The report's account of each training: its losses, and how well it used its machine."""

from __future__ import annotations

from collections.abc import Mapping

from xgray.languages import LANGUAGES
from xgray.report.files import RunFiles, best_validation, language_name, median_speed
from xgray.report.metrics import MISSING, number, percent
from xgray.report.tables import Cell, Table
from xgray.runs.training_numbers import training_numbers

PHASES = {
    "data": "Data",
    "forward": "Forward",
    "backward": "Backward",
    "communication": "Communication",
    "optimizer": "Optimizer",
    "other": "Other",
    "validation": "Validation",
    "checkpoint": "Checkpoints",
}
"""The phases of a training's time, and their columns."""
CAPTION = (
    "Tokens per second are those of the pairs, without padding, in the median step. MFU is the share of the device's "
    "peak that the model's matrix products need. Padding is the share of computed positions that hold no token. The "
    "columns after the peak memory share the training's time."
)


def training_facts(files: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each variant's source languages, number of steps, first and last loss, best validation loss and speed."""
    rows = []
    counts = {manifest["model"]: manifest["counts"] for manifest in files.manifests if manifest["stage"] == "train"}
    for variant, records in files.training.items():
        losses = [record for record in records if record.get("loss") is not None]
        best, speed = best_validation(records), median_speed(records)
        facts = _pair_facts(counts.get(variant, {}))
        if losses:
            facts += [
                ("Last step", str(losses[-1]["step"])),
                ("First loss", number(losses[0]["loss"], 4)),
                ("Last loss", number(losses[-1]["loss"], 4)),
            ]
        if best is not None:
            facts.append(("Best validation loss", f"{number(best['eval_loss'], 4)} at step {best['step']}"))
        if speed is not None:
            facts.append(("Tokens per second", f"{speed:,.0f} (median)"))
        rows.append((variant, facts))
    return rows


def training_table(files: RunFiles) -> Table | None:
    """Return how fast each variant was trained and where the time went; None where no training has measured it."""
    measured = {variant: training_numbers(records) for variant, records in files.training.items()}
    measured = {variant: numbers for variant, numbers in measured.items() if numbers}
    if not measured:
        return None
    phases = [phase for phase in PHASES if any(phase in numbers["phase_seconds"] for numbers in measured.values())]
    columns = ["Variant", "Tokens per second", "MFU", "Padding", "Peak memory", *(PHASES[phase] for phase in phases)]
    table = Table("Speed", CAPTION, columns)
    for variant, numbers in measured.items():
        speed, memory = median_speed(files.training[variant]), numbers["peak_memory_bytes"]
        total = sum(numbers["phase_seconds"].values())
        shares = (numbers["phase_seconds"].get(phase, 0.0) / total for phase in phases)
        table.rows.append(
            [
                Cell(variant, sort=variant),
                Cell(MISSING if speed is None else f"{speed:,.0f}", sort=speed),
                _share(numbers.get("mfu")),
                _share(numbers["padding_share"]),
                Cell(f"{memory / 2**30:.1f} GiB", sort=memory),
                *map(_share, shares),
            ]
        )
    return table


def _share(value: float | None) -> Cell:
    return Cell(percent(value), sort=value)


def _pair_facts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the languages of a training's pairs with their numbers, and how many pairs were cut."""
    by_language = {code: counts[f"num_pairs_{code}"] for code in LANGUAGES if counts.get(f"num_pairs_{code}")}
    facts = []
    if by_language:
        shown = ", ".join(f"{language_name(code)} ({num_pairs:,} pairs)" for code, num_pairs in by_language.items())
        facts.append(("Source languages" if len(by_language) > 1 else "Source language", shown))
    if num_cut := counts.get("num_cut"):
        facts.append(("Pairs with a completion cut to the length of the other", f"{num_cut:,}"))
    return facts
