"""The card of a fine-tuned scorer: what it was made from, how it agrees with held-out texts, and its limits.

``card.json`` holds the facts, ``README.md`` the same for people. Neither holds a time, so equal trainings give equal
folders, and the scorer ``classifier`` gives them the same version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xgray.config import ScorerTraining
from xgray.data.scored_texts import source_name
from xgray.languages import LANGUAGES
from xgray.score.trained.agreement import MIN_AUC, MIN_TEXTS, MIXED, AgreementRow, validated_languages
from xgray.stats.bootstrap import ValueWithInterval
from xgray.version import __version__

CARD, README = "card.json", "README.md"
FORMAT = 1


def make_card(
    section: ScorerTraining,
    fingerprints: Mapping[str, Any],
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: Sequence[AgreementRow],
) -> dict[str, Any]:
    """Return the content of ``card.json``.

    Args:
        section: the training, whose model is pinned to a commit.
        fingerprints: of the ``model``, and of the ``sources`` by name.
        facts: of :class:`xgray.train.encoder.prepare.PreparedTexts`.
        summary: the training's steps and losses.
        rows: the agreement.
    """
    languages = validated_languages(rows, section.attributes)
    fit = section.model_dump(mode="json", exclude={"name", "output", "model", "attributes", "sources", "execution"})
    return {
        "format": FORMAT,
        "name": section.name,
        "xgray": __version__,
        "model": {**section.model.model_dump(), "fingerprint": fingerprints["model"]},
        "attributes": section.attributes,
        "languages": languages,
        "floor": {"min_texts": MIN_TEXTS, "min_auc": MIN_AUC, "attribute": section.attributes[0]},
        "data": {
            source_name(source): {
                **source.model_dump(mode="json", exclude={"path", "name"}, exclude_defaults=True),
                "fingerprint": fingerprints["sources"][source_name(source)],
                **facts["sources"][source_name(source)],
            }
            for source in section.sources
        },
        "fit": {**fit, **summary, "num_tokens": facts["num_tokens"], "num_cut": facts["num_cut"]},
        "agreement": [asdict(row) for row in rows],
        "limits": limits(section, facts, rows),
    }


def limits(section: ScorerTraining, facts: Mapping[str, Any], rows: Sequence[AgreementRow]) -> list[str]:
    """Return what the scorer is known not to do, each a sentence or two."""
    known = [
        f"Texts of more than {section.max_length} tokens lose their end ({facts['num_cut']:,} of the texts that it was "
        "trained on did)."
    ]
    validated = validated_languages(rows, section.attributes)
    if others := [code for code in facts["languages"] if code not in validated]:
        known.append(
            f"Not validated in {' '.join(others)}: fewer than {MIN_TEXTS} held-out texts, or an AUC below {MIN_AUC:g}."
        )
    if unseen := [code for code in LANGUAGES if code not in facts["languages"]]:
        known.append(f"No text was of {' '.join(unseen)}.")
    kinds = {
        kind: [source_name(source) for source in section.sources if source.kind == kind]
        for kind in ("scores", "ratings")
    }
    if kinds["scores"]:
        known.append(
            f"Learned from scores ({', '.join(kinds['scores'])}): it repeats the mistakes of the scorer that gave "
            "them, and agreement with them is no agreement with people."
        )
    if kinds["ratings"]:
        known.append(
            f"Fitted on the ratings of {', '.join(kinds['ratings'])}: it is no independent judge of these prompts."
        )
    if not any(source.held_out for source in section.sources):
        known.append(
            "No source was held out as a whole, so the agreement is on texts of the kinds that it was trained on; on "
            "others expect less."
        )
    for attribute in section.attributes:
        num_toxic = sum(row.num_toxic for row in rows if row.attribute == attribute and row.source == MIXED)
        if num_toxic < MIN_TEXTS:
            known.append(f"{attribute}: only {num_toxic} held-out texts reach .5, so its agreement says little.")
    known.append("Intervals of the agreement take texts for independent; translations and parts of a text are not.")
    return known


def score_section(card: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the ``score`` section of an experiment with this scorer, in ``folder``."""
    labels = {name: name for name in card["attributes"]}
    classifier = {"model": {"id": folder}, "labels": labels, "languages": card["languages"]}
    return {"scorer": "classifier", "attributes": card["attributes"], "classifier": classifier}


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``card.json`` and ``README.md``."""
    text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CARD).write_text(f"{text}\n", encoding="utf-8")
    (folder / README).write_text(readme(card), encoding="utf-8")


def readme(card: Mapping[str, Any]) -> str:
    """Return the card for people, in Markdown, with the header that the hub reads."""
    model, fit, floor = card["model"], card["fit"], card["floor"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    languages = ", ".join(LANGUAGES[code].short for code in card["languages"])
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        f"language: [{languages}]",
        "---",
        f"# {card['name']}",
        "",
        f"Scores {', '.join(card['attributes'])} of a text from 0 to 1, each by a sigmoid of its own. Fine-tuned by "
        f"xgray {card['xgray']} from {model['id']}{revision}.",
        "",
        "In an xgray experiment:",
        "",
        "```yaml",
        "score:",
        *(f"  {name}: {json.dumps(value)}" for name, value in score_section(card, "THIS-FOLDER").items()),
        "```",
        "",
        "## Data",
        "",
        "| source | kind | licence | languages | trained on | validated on | measured on | weight |",
        "|---|---|---|---|---|---|---|---|",
        *(_data_line(name, source) for name, source in card["data"].items()),
        "",
        *(f"SHA-256 of {name}: `{source['fingerprint']}`  " for name, source in card["data"].items()),
        "",
        "## Fit",
        "",
        f"{fit['steps']:,} steps of {fit['batch_size']} texts, learning rate {fit['learning_rate']:g}, binary "
        f"cross-entropy on soft targets; an attribute that a source does not judge is left out of the loss. The "
        f"checkpoint of step {fit['exported_step']:,} has the lowest loss on the validation texts "
        f"({fit['best_eval_loss']:.4f}).",
        "",
        "## Agreement on held-out texts",
        "",
        f"95 % intervals. A language counts as validated from {floor['min_texts']} texts and an AUC of "
        f"{floor['min_auc']:g} in {floor['attribute']} on.",
        "",
        "| attribute | language | held-out source | texts | at least .5 | Spearman | AUC | mean error | bias |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_agreement_line(row) for row in card["agreement"]),
        "",
        "## Known limits",
        "",
        *(f"- {limit}" for limit in card["limits"]),
    ]
    return "\n".join(lines) + "\n"


def _data_line(name: str, source: Mapping[str, Any]) -> str:
    whole = " (held out as a whole)" if source.get("held_out") else ""
    counts = " | ".join(f"{source[f'num_{part}']:,}" for part in ("train", "validation", "test"))
    languages = " ".join(source["languages"])
    cells = f"{name}{whole} | {source['kind']} | {source['licence']} | {languages} | {counts}"
    return f"| {cells} | {source.get('weight', 1):g} |"


def _agreement_line(row: Mapping[str, Any]) -> str:
    cells = [
        row["attribute"],
        row["language"],
        row["source"] or "all that it was trained on",
        f"{row['num']:,}",
        f"{row['num_toxic']:,}",
        *(_figure(ValueWithInterval(**row[name])) for name in ("spearman", "auc")),
        f"{row['mean_absolute_error']:.3f}",
        f"{row['bias']:+.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _figure(value: ValueWithInterval) -> str:
    """``.512 [.480, .541]``, or a dash where there is no value."""
    if value.value is None:
        return "–"
    interval = f" [{value.low:.3f}, {value.high:.3f}]" if value.low is not None and value.high is not None else ""
    return f"{value.value:.3f}{interval}"
