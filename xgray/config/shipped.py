"""The files that come with the package: experiments (the paper's, and small ones that run anywhere), and scorers."""

from __future__ import annotations

from pathlib import Path

from xgray.errors import InputError

EMBEDDED = Path(__file__).parents[1] / "embedded"
TEMPLATE = EMBEDDED / "experiment_template.yaml"


def shipped_experiments() -> dict[str, Path]:
    """Return the shipped experiment files by name."""
    return {path.stem: path for path in sorted((EMBEDDED / "experiments").glob("*.yaml"))}


def shipped_experiment(name: str) -> Path:
    """Return the file of one shipped experiment.

    Raises:
        InputError: there is none of that name.
    """
    known = shipped_experiments()
    if name not in known:
        raise InputError(f"no experiment {name!r} comes with xgray; there are: {', '.join(known)}")
    return known[name]


def shipped_scorers() -> dict[str, Path]:
    """Return the shipped files of scorers by name; each holds a ``score`` section."""
    return {path.stem: path for path in sorted((EMBEDDED / "scorers").glob("*.yaml"))}


def new_experiment(name: str, like: str | None = None) -> str:
    """Return the text of a new experiment file: a small one to start from, or a shipped one under another name.

    Args:
        name: the experiment's name; its file is ``NAME.yaml``.
        like: the shipped experiment to copy.

    Raises:
        InputError: there is no such shipped experiment.
    """
    if like is None:
        return TEMPLATE.read_text(encoding="utf-8").replace("NAME", name)
    text = shipped_experiment(like).read_text(encoding="utf-8")
    return text.replace(f"\nname: {like}\n", f"\nname: {name}\n").replace(f"jobs/{like}.yaml", f"{name}.yaml")
