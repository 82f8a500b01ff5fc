"""Find a model's weights: on the hub, in a folder, in a GGUF file, in a Python package, or behind a URI.

    id of the experiment file  ->  resolve           ->  a local folder, or a hub id
    path given to workers      ->  local_weights     ->  a local folder of the worker's machine, or a hub id

GGUF weights are converted once per machine (:mod:`xgray.models.gguf`), and weights behind a URI are copied once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from xgray.config import Model
from xgray.errors import InputError, StageError
from xgray.models.cache import cache_folder, make_once
from xgray.models.files import ADAPTER_CONFIG, check_files, model_files, plain_folder
from xgray.models.gguf import convert_gguf
from xgray.storage.checksums import CONTENTS, fetch_verified
from xgray.storage.fingerprint import file_fingerprint
from xgray.storage.folder import DamagedError, Folder, write_aside

PACKAGE = "pkg://"
"""How the id of a model starts that is a file in a Python package: ``pkg://PACKAGE/FILE``."""


def resolve(model: Model) -> str:
    """Return what ``from_pretrained`` takes for this model: a local folder, or the hub id.

    Raises:
        InputError: the folder, file or package does not exist.
    """
    if model.id.startswith(PACKAGE):
        return str(convert_gguf(package_file(model.id)))
    path = Path(model.id).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.id: no such GGUF file: {path}")
        return str(convert_gguf(path))
    if path.is_dir():
        check_files(path)
        if not (path / "config.json").is_file() and not is_adapter(str(path)):
            raise InputError(f"model.id: {path} holds neither config.json nor adapter_config.json")
        try:
            return str(plain_folder(path))
        except InputError as error:
            raise InputError(f"model.id: {error}") from None
    if model.id.startswith(("/", "./", "../", "~")) or model.id.count("/") > 1:
        raise InputError(f"model.id: no such folder: {path}")
    return model.id


def path_for_workers(model: Model) -> str:
    """Return what :func:`local_weights` takes for this model on any machine and in any working directory.

    A GGUF file or a file of a package keeps its name, and each machine converts it for itself: the cache that it was
    converted into here may not exist there. Paths are absolute, because Ray's workers keep the working directory that
    Ray was started in.

    Raises:
        InputError: the folder, file or package does not exist.
    """
    resolved = resolve(model)  # converts here as well, so that errors are found before workers start
    if model.id.startswith(PACKAGE):
        return model.id
    path = Path(model.id).expanduser()
    return str(path.absolute()) if path.suffix == ".gguf" or path.is_dir() else resolved


@functools.cache
def local_weights(path: str) -> str:
    """Return what ``from_pretrained`` takes on this machine for a path from :func:`path_for_workers`, or for a URI.

    Weights behind a URI are copied, and GGUF files are converted, into a folder of the cache on first use, and weights
    under a wrapper's names are renamed there (:func:`xgray.models.files.plain_folder`). Any other local folder and a
    hub id are returned as they are.

    Raises:
        InputError: the file or package does not exist.
        StageError: the weights behind a URI are damaged.
    """
    if path.startswith(PACKAGE) or Path(path).suffix == ".gguf":
        return resolve(Model(id=path))
    if "://" not in path:
        return str(plain_folder(Path(path))) if Path(path).is_dir() else path
    source = Folder(path)
    if source.local is not None:
        return str(source.local)
    target = cache_folder() / "weights" / hashlib.sha256(source.read_bytes(CONTENTS)).hexdigest()[:32]
    try:
        return str(make_once(target, lambda folder: fetch_verified(source, folder)))
    except DamagedError as error:
        raise StageError(
            f"{source} is damaged: {error}. Delete the folder of its stage, and run the same command again."
        ) from None


def is_adapter(path: str) -> bool:
    """Return whether the folder holds a PEFT adapter rather than a whole model."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def model_fingerprint(model: Model) -> str:
    """Return what identifies a model: a hash of its local files that matter, ``id@commit`` for a model of the hub.

    Those are the weights, the configuration and the tokenizer (:func:`xgray.models.files.model_files`). A model of
    the hub must have been pinned to a commit, see :func:`xgray.models.revisions.pin_revision`.
    """
    path = Path(resolve(model))
    if not path.is_dir():
        return f"{model.id}@{model.revision}"
    identity = folder_fingerprint(path)
    if num_files(path) == len(model_files(path)):
        return identity  # which is also what earlier versions recorded
    recorded = _RECORDED.get()()
    if recorded and identity not in recorded:
        earlier = file_fingerprint(path)
        return earlier if earlier in recorded else identity
    return identity


def num_files(folder: Path) -> int:
    """Return the number of files below a folder."""
    return sum(file.is_file() for file in folder.rglob("*"))


_RECORDED: ContextVar[Callable[[], Collection[str]]] = ContextVar("recorded identities", default=frozenset)


@contextmanager
def recorded_identities(read: Callable[[], Collection[str]]) -> Iterator[None]:
    """Let :func:`model_fingerprint` return what an earlier version recorded of a folder, all of whose files it hashed.

    Args:
        read: returns the identities that a run recorded; called only for a folder with files that do not matter.
    """
    token = _RECORDED.set(read)
    try:
        yield
    finally:
        _RECORDED.reset(token)


def folder_fingerprint(folder: Path) -> str:
    """Return a hash of the names and contents of the files that matter in the folder of a model or an adapter."""
    return file_fingerprint(folder, model_files(folder))


def package_file(uri: str) -> Path:
    """Return the local path of a file in a Python package.

    A file too large for one package lies in several; the named package then offers ``assemble(path)``, which writes
    the whole file. That is done once, into the cache.
    """
    package, _, name = uri.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):  # of a package around it that does not exist
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"model.id: {uri}: the package {package} is not installed (pip install {package})")
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not name or ".." in Path(name).parts:
        found = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
        raise InputError(f"model.id: {uri} names no file of the package; write {PACKAGE}{package}/FILE ({found} found)")
    path = folder / name
    if path.is_file():
        return path
    try:
        assemble = getattr(importlib.import_module(package), "assemble", None)
    except ImportError:
        assemble = None
    if assemble is None:
        raise InputError(f"model.id: {uri}: no file {name} in package {package}")
    target = cache_folder() / "gguf" / name
    if not target.is_file():
        try:
            with write_aside(target) as working:
                assemble(working)
        except ImportError as error:
            raise InputError(f"model.id: {uri}: {error}; pip install 'xgray[gemma]'") from None
    return target
