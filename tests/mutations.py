"""Change the bytes of a file, or the values in it, at random from a seed, as strangers and broken machines do."""

import json
from random import Random

ODD = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"- " * 2000,
    b'"\\ud83d"', b"\x1b[31m\x1b]0;x\x07", b"1e999", b"-1", b"NaN", b"1" * 5000, b"9" * 30, b"null", b"true", b"~",
    b"[]", b"{}", b'""', b"&a [*a, *a]", b"<<: *a", b"!!python/object/apply:os.system [x]", b"../../x", b"\xe2\x80\xae",
    b",,,", b'"', b"'", b":", b"#", b"%s%n{0}", b"\t", b"file:///dev/zero", b"/dev/zero", b"2024-31-12", b"0x",
    b"\xc3\x28",
)  # fmt: skip
"""What readers stumble over."""
VALUES = (
    None, True, False, 0, -1, 1, 2**70, 1e300, 0.5, "", "x", "\ud83d", "\x1b[31m", "x" * 5000, [], {}, [None], [[[]]],
    {"a": {"b": []}}, ["x", 1], "/dev/zero", "../x", "nan", "en", {"": ""}, [0] * 50, "1e12", "a: b",
)  # fmt: skip
"""Values of other types and sizes than those that stand in a file."""


def mutated(content: bytes, random: Random) -> bytes:
    """Return the content with one to three changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice((_cut, _doubled, _flipped, _with_odd, _with_odd, _revalued, _revalued))(content, random)
    return content


def _span(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(content))
    return start, min(len(content), start + random.choice((1, 4, 16, 64, len(content))))


def _cut(content: bytes, random: Random) -> bytes:
    start, stop = _span(content, random)
    return content[:start] + content[stop:]


def _doubled(content: bytes, random: Random) -> bytes:
    start, stop = _span(content, random)
    return content[:stop] + content[start:stop] + content[stop:]


def _flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 3)) if content else 0):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _with_odd(content: bytes, random: Random) -> bytes:
    start, stop = random.choice(((len(content), len(content)), _span(content, random)))
    return content[:start] + random.choice(ODD) + content[random.choice((start, stop)) :]


def _revalued(content: bytes, random: Random) -> bytes:
    """Put another value in some place of a JSON text, or of one of its lines; change other texts as bytes."""
    for separator in (None, b"\n"):
        parts = [content] if separator is None else content.split(separator)
        place = random.randrange(len(parts))
        try:
            value = json.loads(parts[place])
        except (ValueError, RecursionError):
            continue
        parts[place] = json.dumps(_with_other(value, random)).encode()
        return (separator or b"").join(parts)
    return _with_odd(content, random)


def _with_other(value: object, random: Random) -> object:
    """Return the value with another in the place of a part of it."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        action = random.random()
        rest = {name: item for name, item in value.items() if name != key}
        if action < 0.1:
            return rest
        return rest | {key if action > 0.15 else random.choice(("", "\x1b", "x")): _with_other(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        return [*value[:place], _with_other(value[place], random), *value[place + 1 :]]
    return random.choice(VALUES)
