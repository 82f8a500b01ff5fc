"""The card of a fine-tuned scorer: what it was made from, how it agrees with held-out texts, and its limits.

``card.json`` holds the facts, ``README.md`` the same for people. Neither holds a time, so equal trainings give equal
folders, and the scorer ``classifier`` gives them the same version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xgray.config import ScorerTraining
from xgray.data.scored_texts import source_name
from xgray.evaluate.agreement_file import AVERAGE, FLOOR, AgreementTable, validated_languages, write_table
from xgray.languages import LANGUAGES
from xgray.version import __version__

CARD, README = "card.json", "README.md"
FORMAT = 1


def make_card(
    section: ScorerTraining,
    fingerprints: Mapping[str, Any],
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    agreement: AgreementTable,
    of_sources: Mapping[str, AgreementTable],
) -> dict[str, Any]:
    """Return the content of ``card.json``.

    Args:
        section: the training, whose model is pinned to a commit.
        fingerprints: of the ``model``, and of the ``sources`` by name.
        facts: of :class:`xgray.train.encoder.prepare.PreparedTexts`.
        summary: the training's steps and losses.
        agreement: on the held-out texts of the sources that it was trained on.
        of_sources: on each source that was held out as a whole.
    """
    languages = validated_languages(agreement, section.attributes[0])
    fit = section.model_dump(mode="json", exclude={"name", "output", "model", "attributes", "sources", "execution"})
    return {
        "format": FORMAT,
        "name": section.name,
        "xgray": __version__,
        "model": {**section.model.model_dump(), "fingerprint": fingerprints["model"]},
        "attributes": section.attributes,
        "languages": languages,
        "floor": {**vars(FLOOR), "attribute": section.attributes[0]},
        "data": {
            source_name(source): {
                **source.model_dump(mode="json", exclude={"path", "name"}, exclude_defaults=True),
                "fingerprint": fingerprints["sources"][source_name(source)],
                **facts["sources"][source_name(source)],
            }
            for source in section.sources
        },
        "fit": {**fit, **summary, "num_tokens": facts["num_tokens"], "num_cut": facts["num_cut"]},
        "agreement": write_table(agreement),
        "agreement_data": "held-out texts of its sources",
        "agreement_of_sources": {name: write_table(table) for name, table in of_sources.items()},
        "limits": limits(section, facts, agreement),
    }


def limits(section: ScorerTraining, facts: Mapping[str, Any], agreement: AgreementTable) -> list[str]:
    """Return what the scorer is known not to do, each a sentence or two."""
    known = [
        f"Texts of more than {section.max_length} tokens lose their end ({facts['num_cut']:,} of the texts that it was "
        "trained on did)."
    ]
    validated = validated_languages(agreement, section.attributes[0])
    if others := [code for code in facts["languages"] if code not in validated]:
        known.append(
            f"Not validated in {' '.join(others)}: fewer than {FLOOR.num} held-out texts, a Spearman below "
            f"{FLOOR.spearman:g} or an AUC below {FLOOR.auc:g} of {section.attributes[0]}."
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
        languages = {code: each for code, each in agreement.get(attribute, {}).items() if code != AVERAGE}
        num_toxic = sum(each.num_toxic or 0 for each in languages.values())
        if num_toxic < FLOOR.num:
            known.append(f"{attribute}: only {num_toxic} held-out texts reach .5, so its agreement says little.")
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
        "95 % intervals; texts of a group are drawn together. The AUC tells texts whose value is .5 or above from "
        f"those below .25. A language counts as validated from {floor['num']} texts, a Spearman of "
        f"{floor['spearman']:g} and an AUC of {floor['auc']:g} in {floor['attribute']} on.",
        "",
        "| attribute | language | held out of | texts | at least .5 | Spearman | AUC | absolute error | bias |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in agreement_cells(card, _figure, "{:+.3f}".format)),
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


def agreement_cells(
    card: Mapping[str, Any], figure: Callable[[Mapping[str, Any]], str], signed: Callable[[float], str]
) -> Iterator[list[str]]:
    """Yield the lines of a card's agreement: attribute, language, where the texts are held out of, counts, figures.

    Args:
        card: the content of ``card.json``.
        figure: writes a value with its interval.
        signed: writes a value with its sign.
    """
    tables = {"its sources": card["agreement"], **card["agreement_of_sources"]}
    for attribute in card["attributes"]:
        for source, table in tables.items():
            for code, row in table.get(attribute, {}).items():
                counts = [f"{row[name]:,}" for name in ("num", "num_toxic")]
                figures = [figure(row[name]) for name in ("spearman", "auc", "mean_absolute_error")]
                yield [attribute, code, source, *counts, *figures, signed(row["bias"]["value"])]


def _figure(measured: Mapping[str, Any]) -> str:
    """``.512 [.480, .541]``, or a dash where there is no value."""
    if "value" not in measured:
        return "–"
    interval = f" [{measured['low']:.3f}, {measured['high']:.3f}]" if "low" in measured else ""
    return f"{measured['value']:.3f}{interval}"
