"""Measure how often the language of a prompt is identified, and how fast: xgray against plain py3langid.

    python benchmarks/languages.py [--prompts embedded] [--rounds 3]

The texts are prompts of the 17 languages, whole and their first halves; ``--prompts`` names a folder with RTP_LX files.
The plain library knows all of its languages and answers whatever the probability. Rounds alternate; the speed is the
median over them, of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from xgray.config import Prompts
from xgray.data.prompts import read_prompts
from xgray.evaluate.consistency import identify
from xgray.languages import LANGUAGES


def shares(found: Sequence[str | None], language: str) -> tuple[float, float, float]:
    """Return the shares that are right, wrong and unknown."""
    right, unknown = found.count(language), found.count(None)
    return right / len(found), (len(found) - right - unknown) / len(found), unknown / len(found)


def main() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="embedded", help="embedded, or a folder with RTP_LX files")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plain = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    codes = {language.short: code for code, language in LANGUAGES.items()}
    ways: dict[str, Callable[[str], str | None]] = {
        "plain": lambda text: codes.get(found := plain.classify(text)[0], found),
        "xgray": identify,
    }
    identify("")  # loads the model
    whole: dict[str, list[str]] = {code: [] for code in LANGUAGES}
    for prompt in read_prompts(Prompts(path=options.prompts), list(LANGUAGES)):
        whole[prompt.language].append(prompt.text)
    for part, texts in (
        ("whole prompts", whole),
        ("first halves", {code: [text[: len(text) // 2] for text in of] for code, of in whole.items()}),
    ):
        num_texts = sum(map(len, texts.values()))
        print(f"{num_texts} {part}; per cent right / wrong / unknown, and texts a second")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, dict[str, list[str | None]]] = {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = time.process_time()
                found[name] = {code: [way(text) for text in of_language] for code, of_language in texts.items()}
                seconds[name].append(time.process_time() - start)
        for name in ways:
            by_language = {code: shares(found[name][code], code) for code in texts}
            for code, values in by_language.items() if name == "xgray" else ():
                print("{:10}{:>8.1f}{:>8.1f}{:>8.1f}".format(code, *(100 * value for value in values)))
            means = [100 * statistics.mean(column) for column in zip(*by_language.values(), strict=True)]
            speed = num_texts / statistics.median(seconds[name])
            print("{:10}{:>8.1f}{:>8.1f}{:>8.1f}{:>10,.0f}/s".format(name, *means, speed))


if __name__ == "__main__":
    main()
