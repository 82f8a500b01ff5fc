"""The experiment file as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from xgray.config.evaluate import Evaluate, Report
from xgray.config.mechanism import Activations, Capability, Intervene, Probe, Retrieve, Vectors
from xgray.config.protocol import switch_paths, with_protocol
from xgray.config.sampling import Generate, Prompts, Score
from xgray.config.section import OTHER_SCORES, Model, Section, Switch, language_codes, merge, validate
from xgray.config.sweep import Sweep, SweepPoint
from xgray.config.train import Train, Variant
from xgray.errors import InputError
from xgray.languages import LANGUAGES

STORE = "scores"
"""The score store's folder, beside the runs that share it."""


class Experiment(Section):
    """One experiment: a model before and after tuning, measured in several languages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The name of the run and of its folder below ``runs``; ``scores`` is taken by the score store."""
    runs: str = "runs"
    """The folder of all runs: a local folder, or a URI that pyarrow.fs knows and the whole cluster reaches, without
    credentials."""
    protocol: Switch = "corrected"
    """Whose choices the experiment makes where the paper's scripts differ from its text or are wrong: ``released`` does
    what the scripts do, ``corrected`` what is right. It is the default of every switch of the experiment; a switch that
    is set keeps its value, and the report names it."""
    seed: int = Field(0, ge=0, lt=2**31)
    """The seed from which all others derive: of training, sampling and resampling."""
    model: Model
    """The model before tuning."""
    languages: list[str] = list(LANGUAGES)
    """The codes of the languages to measure; on the command line also ``en,de``."""
    prompts: Prompts = Prompts()
    train: Train = Train()
    variants: list[Variant] = [Variant(name="dpo")]
    """The models after tuning: trainings that differ from the ``train`` section, or checkpoints given as they are."""
    sweep: Sweep | None = None
    generate: Generate = Generate()
    score: Score = Score()
    """Toxicity scores of the completions. A list of such sections scores the same completions with each of them: all
    tables are of the first one, and the report says which findings hold under every one. On the command line also a
    scorer that comes with xgray, or its file: ``--score qwen3guard-0.6b``; given several times, a list."""
    other_scores: SkipJsonSchema[list[Score]] = []
    """All scorers of the list ``score`` but the first; the file and dumps hold one list."""
    evaluate: Evaluate = Evaluate()
    probe: Probe | None = None
    vectors: Vectors | None = None
    """The value vectors nearest to the probe. Needs the section ``probe``, or ``vectors.probe``."""
    activations: Activations | None = None
    """The source neurons' mean activation before and after tuning. Needs the section ``vectors``, or
    ``activations.neurons``."""
    intervene: Intervene | None = None
    """Completions of the base model while neurons are changed. Needs the section ``vectors``, or
    ``intervene.neurons``."""
    retrieve: Retrieve | None = None
    capability: Capability | None = None
    report: Report = Report()

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any) -> Any:
        """Keep the first scorer of a list, of which all tables are, apart; set the switches that the protocol rules."""
        if not isinstance(values, dict):
            return values
        if OTHER_SCORES in values:
            raise ValueError(f"unknown key {OTHER_SCORES!r}; score takes a list of scorers")
        sections = values.get("score")
        if isinstance(sections, list):
            if not sections:
                raise ValueError(
                    "score: the list is empty; list at least one scorer, or leave score out for the default"
                )
            values = {**values, "score": sections[0], OTHER_SCORES: sections[1:]}
        return with_protocol(values, "released", cls) if values.get("protocol") == "released" else values

    @model_serializer(mode="wrap")
    def _as_in_the_file(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump several scorers as one list, a single one as its section, and variants as they were before the sweep."""
        values: dict[str, Any] = dump(self)
        if others := values.pop(OTHER_SCORES, None):
            values["score"] = [values["score"], *others]
        if self.sweep is not None and "variants" in values:
            sources = {source.name: source.model_dump() for source, _ in map(self.sweep.source, self.variants)}
            values["variants"] = list(sources.values())
        return values

    @field_validator("name")
    @classmethod
    def _not_the_store(cls, name: str) -> str:
        if name == STORE:
            raise ValueError(f"{STORE!r} is the folder of the score store; take another name")
        return name

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, codes: list[str]) -> list[str]:
        return language_codes(codes)

    @model_validator(mode="after")
    def _expand_sweep(self) -> Experiment:
        """Replace the variants by the trainings of the sweep: this comes before whatever looks at the variants."""
        if self.sweep is None:
            return self
        _check_names(self.variants)
        # In place: where the class is called, Pydantic drops another object that a validator returns.
        self.__dict__["variants"] = self.sweep.expand(self.variants)
        return self

    @model_validator(mode="after")
    def _valid_variants(self) -> Experiment:
        _check_names(self.variants)
        for variant in self.variants:
            self.train_section(variant)
        return self

    @model_validator(mode="after")
    def _complete(self) -> Experiment:
        if self.vectors and not (self.probe or self.vectors.probe):
            raise ValueError("vectors needs the probe: add the section 'probe: {}', or name a file in vectors.probe")
        for name, section in (("activations", self.activations), ("intervene", self.intervene)):
            if section and section.neurons is None and not self.vectors:
                raise ValueError(
                    f"{name} needs neurons: list them in {name}.neurons, or add the sections 'probe: {{}}' and "
                    "'vectors: {}', which find them"
                )
        return self

    @model_validator(mode="after")
    def _different_scorers(self) -> Experiment:
        for index, section in enumerate(self.other_scores, start=1):
            equal = [other for other in self.scores[:index] if _without_execution(other) == _without_execution(section)]
            if equal:
                raise ValueError(
                    f"score.{index}: the scorer {section.scorer} is listed twice; a scorer agrees with itself. "
                    "Leave one of them out"
                )
            attributes = self.score.attributes[:1]
            if not set(attributes) <= set(section.attributes):
                listed = ", ".join([*section.attributes, *attributes])
                raise ValueError(
                    f"score.{index}.attributes: {section.scorer} does not score {attributes[0]}, the first attribute "
                    f"of the first scorer, in which scorers are compared; add it: [{listed}]"
                )
        return self

    @property
    def scores(self) -> list[Score]:
        """The sections of all scorers, the one that all tables are of first."""
        return [self.score, *self.other_scores]

    @property
    def scorer_names(self) -> list[str]:
        """What all scorers are called in folders and tables: ``embedding``, ``guard-Qwen3Guard-Gen-0.6B``.

        A name that occurs twice gets a number: ``embedding``, ``embedding-2``.
        """
        return list(_numbered([section.name for section in self.scores]))

    def score_section(self, scorer: str | None) -> Score:
        """Return the section of a scorer by its name; of the first one for None.

        Raises:
            InputError: there is no scorer of that name.
        """
        names = self.scorer_names
        if scorer is not None and scorer not in names:
            raise InputError(f"no scorer {scorer!r} in this experiment; there are: {', '.join(names)}")
        return self.scores[names.index(scorer)] if scorer is not None else self.score

    def train_section(self, variant: Variant) -> Train:
        """Return the ``train`` section with the variant's changes."""
        merged = merge(self.train.model_dump(), variant.train)
        return validate(Train, merged, f"variants.{variant.name}.train")

    def training_seed(self, variant: Variant) -> int:
        """Return the seed of a variant's training: its own, or the experiment's."""
        seed = self.train_section(variant).seed
        return self.seed if seed is None else seed

    def sweep_points(self) -> dict[str, SweepPoint]:
        """Return the sweep's point of every variant that it made, by the variant's name; nothing without a sweep."""
        sources = {variant.name: self.sweep.source(variant) for variant in self.variants} if self.sweep else {}
        return {name: SweepPoint(source.name, values) for name, (source, values) in sources.items() if values}

    def switches(self) -> dict[str, str]:
        """Return the setting of every switch: ``{"evaluate.fluency.protocol": "released"}``.

        Switches of sections that are off are left out. A variant's switch is named where it differs from the ``train``
        section's, and another scorer's where it differs from the first one's.
        """
        settings = {}
        for path, _ in switch_paths(type(self)):
            value: Any = self
            for name in path:
                value = getattr(value, name, None)
            if len(path) > 1 and value is not None:
                settings[".".join(path)] = value
        for index, scorer in enumerate(self.other_scores, start=1):
            if scorer.empty_text != self.score.empty_text:
                settings[f"score.{index}.empty_text"] = scorer.empty_text
        for variant in self.variants:
            section = self.train_section(variant)
            for path, _ in switch_paths(Train):
                setting = getattr(section, path[0])
                if setting != getattr(self.train, path[0]):
                    settings[f"variants.{variant.name}.train.{path[0]}"] = setting
        return settings

    def differing_switches(self) -> dict[str, str]:
        """Return the switches that are set to something else than the experiment's protocol."""
        return {name: setting for name, setting in self.switches().items() if setting != self.protocol}

    def variant(self, name: str) -> Variant:
        """Return the variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)


def _check_names(variants: list[Variant]) -> None:
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"two variants have the same name: {' '.join(names)}")


def _without_execution(section: Score) -> dict[str, Any]:
    return section.model_dump(exclude={"execution"})


def _numbered(names: list[str]) -> Iterator[str]:
    given: set[str] = set()
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        free = next(each for each in chain([name], numbered) if each not in given)
        given.add(free)
        yield free
