"""Sentence states over Ray: one language is one unit of work, and its file is written when all of it is encoded."""

from __future__ import annotations

from xgray.config import Model, Retrieve
from xgray.storage import Folder


class RetrieveWorker:
    """One copy of the model."""

    def __init__(self, model: Model, section: Retrieve, output: Folder) -> None:
        from xgray.models import load_causal_lm, load_tokenizer, resolve

        self.section = section
        self.output = output
        path = resolve(model)
        self.model = load_causal_lm(path, model.dtype, model.revision)
        self.tokenizer = load_tokenizer(path, model.revision)

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Encode and write one language's texts; the device."""
        from xgray.models import device_name
        from xgray.retrieve.files import write_states
        from xgray.retrieve.states import encode

        language, texts = unit
        section = self.section
        encoded = encode(self.model, self.tokenizer, texts, section.max_tokens, section.execution.batch_size)
        write_states(self.output, language, encoded)
        return device_name()
