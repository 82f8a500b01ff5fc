"""Read pickle files and torch's ``.pt`` files as data, without running what they say.

A pickle is a program for a small stack machine, which may call any function of any module. This module is a machine
that calls none: it builds lists, tuples, mappings, numbers, texts and arrays, and knows by name what numpy and torch
write around their arrays. A file that names anything else is refused. A file's size, the depth of its nesting and its
number of values are limited.

The instructions are documented in Python's ``pickletools``, the ``.pt`` file in torch's "serialization semantics".
"""

from __future__ import annotations

import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PROGRAM_BYTES = 2**26
"""Greatest size of a pickle, without the arrays that a ``.pt`` file holds beside it."""
MAX_ARRAY_BYTES = 2**31
"""Greatest size of all arrays that a ``.pt`` file holds."""
MAX_DEPTH = 32
"""Greatest nesting of containers."""
MAX_VALUES = 2 * 10**6
"""Greatest number of values in all containers together."""

_PLAIN_TYPES = re.compile(r"[<>|=]?(f[248]|i[1248]|u[1248]|b1|\?)")
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "b1",
}  # fmt: skip
_PUSHED = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
"""Instructions that push their argument."""


_DAMAGES = (
    ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError,
    zipfile.BadZipFile, zlib.error, RuntimeError,  # RuntimeError: an encrypted archive
)  # fmt: skip
"""What a damaged file raises."""


class _Refused(Exception):
    """The file holds something else than data; the message says what."""


@dataclass(frozen=True)
class _Name:
    """The name of a function or class, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class _Made:
    """A value that later instructions complete: numpy's arrays and types, torch's modules."""

    name: str
    value: Any = None


def read_pickled(path: str | Path) -> Any:
    """Return the content of a pickle file or of a ``.pt`` file that ``torch.save`` wrote (torch 1.6 or newer).

    Returns:
        Lists, tuples, mappings, numbers, texts, bytes, None and numpy arrays. A tensor is an array, bfloat16 as
        float32; a ``torch.nn.Linear`` is the mapping of its attributes; a set is a list.

    Raises:
        InputError: there is no such file, it is too large or damaged, or it holds something else.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            is_archive = stream.read(4) == b"PK\x03\x04"
        if is_archive:
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive)
        if file.stat().st_size > MAX_PROGRAM_BYTES:
            raise _Refused(f"it has {file.stat().st_size:,} bytes, and at most {MAX_PROGRAM_BYTES:,} are read")
        return _run(file.read_bytes(), _no_storage)
    except OSError as error:
        raise InputError(f"{file}: cannot read the file: {error.strerror or error}") from None
    except _Refused as error:
        raise InputError(
            f"{file}: {error}. Only numbers, texts, lists, tuples, mappings and arrays are read, because anything else "
            "could run code. Save those alone: torch.save(module.state_dict(), FILE) or numpy.save(FILE, array)."
        ) from None
    except _DAMAGES as error:
        raise InputError(
            f"{file}: no pickle file and no .pt file of torch, or a damaged one ({error}). Copy it again."
        ) from None


def read_neurons(path: str | Path) -> list[tuple[int, int]]:
    """Return the neurons ``(layer, index)`` that a pickle file lists, in its order.

    Raises:
        InputError: as :func:`read_pickled`, or the file holds something else than a list of pairs of numbers.
    """
    neurons = read_pickled(path)
    if not isinstance(neurons, list | tuple) or not all(_is_neuron(neuron) for neuron in neurons):
        raise InputError(f"{path}: a list of pairs (layer, index) is expected, and the file holds something else.")
    return [(int(layer), int(index)) for layer, index in neurons]


def _is_neuron(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(number) is int for number in value)


def _read_archive(archive: zipfile.ZipFile) -> Any:
    """Return the content of a ``.pt`` file: a pickle, and a file for the numbers of each storage."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError("the archive holds no data.pkl")
    root = programs[0].removesuffix("data.pkl")
    if entries[programs[0]].file_size > MAX_PROGRAM_BYTES:
        raise _Refused(f"its data.pkl has more than {MAX_PROGRAM_BYTES:,} bytes")
    if sum(entry.file_size for entry in entries.values()) > MAX_ARRAY_BYTES:
        raise _Refused(f"its arrays have more than {MAX_ARRAY_BYTES:,} bytes")
    order = ">" if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big" else "<"
    return _run(
        archive.read(programs[0]), lambda kind, key, count: _storage(archive, f"{root}data/{key}", order, kind, count)
    )


def _storage(archive: zipfile.ZipFile, entry: str, order: str, kind: str, count: int) -> NDArray[Any]:
    """Return the numbers of one storage."""
    import numpy as np

    content = archive.read(entry)
    code = _STORAGES[kind]
    numbers = np.frombuffer(content, order + ("u2" if code == "bfloat16" else code), count)
    if code != "bfloat16":
        return numbers
    # A bfloat16 is the upper half of a float32.
    return (numbers.astype("u4") << 16).view("f4")


def _no_storage(kind: str, key: str, count: int) -> NDArray[Any]:
    raise _Refused("it is a pickle that refers to another file")


def _run(program: bytes, storage: Callable[[str, str, int], NDArray[Any]]) -> Any:
    """Carry out a pickle's instructions.

    Args:
        storage: returns the numbers of a tensor's storage, given the storage's class, its key and the count of numbers.
    """
    machine = _Machine(storage)
    for instruction, argument, _ in pickletools.genops(program):
        if instruction.name == "STOP":
            return _plain(machine.stack.pop(), 0, [0])
        machine.step(instruction.name, argument)
    raise ValueError("it ends too early")


class _Machine:
    """The stack machine: its stack, the stacks below its marks, and its memory."""

    def __init__(self, storage: Callable[[str, str, int], NDArray[Any]]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storage = storage

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name == "GLOBAL":
            self.stack.append(_Name(*argument.split(" ", 1)))
        elif name in _SIMPLE:
            _SIMPLE[name](self)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"it has the instruction {name}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Return what lies above the last mark, and go on below it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        """Return the ``count`` topmost values, the deepest first."""
        if len(self.stack) < count:
            raise ValueError("a value is missing")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("values are added to something else than a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("entries are added to something else than a mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, _Name | _Made):
                raise _Refused(f"a key is no number and no text but {key}")
            target[key] = value

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def call(self) -> None:
        """Make what a call would make; the function is not looked up."""
        name, arguments = self.pop(2)
        self.stack.append(_made(name, arguments))

    def complete(self) -> None:
        """Give a value that was made the rest of its content."""
        made, state = self.pop(2)
        if isinstance(made, _Made):
            _complete(made, state)
        elif not isinstance(made, dict):  # attributes of a mapping, as a state_dict has them, are left out
            raise _Refused("it sets attributes of a value")
        self.stack.append(made)

    def load_storage(self) -> None:
        """Push the numbers of a storage."""
        (reference,) = self.pop(1)
        kind, storage, key, _, count = reference
        is_known = isinstance(storage, _Name) and storage.module == "torch" and storage.name in _STORAGES
        if kind != "storage" or not is_known or not re.fullmatch(r"\d{1,9}", str(key)):
            raise _Refused(f"it refers to {storage}")
        self.stack.append(_Made("storage", self.storage(storage.name, str(key), count)))


def _globals_on_stack(machine: _Machine) -> None:
    module, name = machine.pop(2)
    machine.stack.append(_Name(str(module), str(name)))


_SIMPLE: dict[str, Callable[[_Machine], Any]] = {
    "NONE": lambda machine: machine.push(None),
    "NEWTRUE": lambda machine: machine.push(True),
    "NEWFALSE": lambda machine: machine.push(False),
    "EMPTY_LIST": lambda machine: machine.push([]),
    "EMPTY_SET": lambda machine: machine.push([]),
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    "EMPTY_DICT": lambda machine: machine.push({}),
    "TUPLE1": lambda machine: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine: machine.push(tuple(machine.pop_mark())),
    "DICT": lambda machine: machine.make_dict(),
    "LIST": lambda machine: machine.push(machine.pop_mark()),
    "APPEND": lambda machine: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_mark()),
    "POP": lambda machine: machine.pop(1),
    "POP_MARK": lambda machine: machine.pop_mark(),
    "STACK_GLOBAL": _globals_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.complete,
    "BINPERSID": _Machine.load_storage,
}


def _made(name: Any, arguments: Any) -> Any:
    """Return what calling ``name`` would return, for the names that numpy and torch write around arrays.

    Raises:
        _Refused: for any other name.
    """
    import numpy as np

    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise _Refused("it calls something that is no name")
    module, function = name.module.replace("numpy._core", "numpy.core"), name.name
    match module, function:
        case "collections", "OrderedDict":
            return dict(*arguments)
        case (("builtins" | "__builtin__"), "set"):
            return list(*arguments)
        case "_codecs", "encode":  # how protocol 2 writes bytes
            text, encoding = arguments
            if encoding != "latin1":
                raise _Refused(f"it encodes text as {encoding}")
            return text.encode("latin1")
        case "numpy", "dtype":
            return _Made("dtype", _plain_type(arguments[0]))
        case "numpy.core.multiarray", "scalar":
            return np.frombuffer(arguments[1], arguments[0].value, 1)[0].item()
        case "numpy.core.multiarray", "_reconstruct":
            return _Made("array")
        case "numpy.core.numeric", "_frombuffer":
            content, dtype, shape, order = arguments
            return _Made("array", np.frombuffer(content, dtype.value).reshape(shape, order=order))
        case "torch._utils", "_rebuild_tensor_v2":
            return _Made("array", _tensor(*arguments[:4]))
        case "torch._utils", "_rebuild_parameter":
            return arguments[0]
        case "torch.nn.modules.linear", "Linear":
            return _Made("module")
    raise _Refused(f"it refers to {name}")


def _plain_type(code: Any) -> str:
    if not isinstance(code, str) or not _PLAIN_TYPES.fullmatch(code):
        raise _Refused(f"an array holds {code}, which are no numbers")
    return code


def _complete(made: _Made, state: Any) -> None:
    """Take in the state of an array, of its type, or of a module."""
    import numpy as np

    if made.name == "dtype":
        order = state[1]
        made.value = (order if order in "<>" else "") + made.value.lstrip("<>|=")
    elif made.name == "array":
        _, shape, dtype, is_fortran, content = state
        made.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if is_fortran else "C")
    elif made.name == "module" and isinstance(state, dict):
        made.value = state
    else:
        raise _Refused(f"it sets attributes of a {made.name}")


def _tensor(storage: _Made, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor as an array: a view of its storage's numbers, copied."""
    import numpy as np

    numbers = storage.value
    if any(number < 0 for number in (offset, *shape, *strides)) or prod(shape) * numbers.itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"a tensor has the shape {shape}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if prod(shape) and last >= len(numbers):
        raise ValueError(f"a tensor of the shape {shape} is longer than its storage")
    steps = [stride * numbers.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
    return np.array(view)


def _plain(value: Any, depth: int, count: list[int]) -> Any:
    """Return a value with all that was made replaced by what it holds; too much or too deep is refused."""
    count[0] += 1
    if depth > MAX_DEPTH or count[0] > MAX_VALUES:
        raise _Refused(f"its values are nested more than {MAX_DEPTH} deep, or are more than {MAX_VALUES:,}")
    if isinstance(value, _Made):
        if value.name == "storage" or value.value is None:
            raise _Refused(f"it holds a {value.name} by itself")
        return _plain(value.value, depth + 1, count)
    if isinstance(value, _Name):
        raise _Refused(f"it refers to {value}")
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1, count) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1, count) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, depth + 1, count) for item in value)
    return value
