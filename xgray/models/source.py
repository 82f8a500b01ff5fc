"""Where a model's weights come from, and loading them: a hub id, a folder, a GGUF file, a file in a package.

GGUF weights are converted once into a plain safetensors folder below the cache (``XGRAY_CACHE``, by default
``~/.cache/xgray``), so that the trainer and every engine read the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from pathlib import Path

from xgray.config import Model
from xgray.errors import InputError, StageError
from xgray.models.cache import cache_folder, make_once
from xgray.models.gguf import converted
from xgray.storage.checksums import CONTENTS, fetch_verified
from xgray.storage.fingerprint import file_fingerprint
from xgray.storage.folder import DamagedError, Folder, write_aside


def resolve(model: Model) -> str:
    """What ``from_pretrained`` takes for this model: a local folder, or the hub id.

    Raises:
        InputError: the folder, file or package is not there.
    """
    if model.id.startswith("pkg://"):
        return str(converted(_package_file(model.id)))
    path = Path(model.id).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.id: no such GGUF file: {path}")
        return str(converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file() and not is_adapter(str(path)):
            raise InputError(f"model.id: {path} holds neither config.json nor adapter_config.json")
        return str(path)
    if model.id.startswith(("/", "./", "../", "~")) or model.id.count("/") > 1:
        raise InputError(f"model.id: no such folder: {path}")
    return model.id


def path_for_workers(model: Model) -> str:
    """What :func:`local_weights` takes on any machine for this model: what must be converted is, by each for itself.

    Raises:
        InputError: the folder, file or package is not there.
    """
    resolved = resolve(model)  # converted here as well: what is wrong with it is found before workers start
    if model.id.startswith("pkg://"):
        return model.id
    path = Path(model.id).expanduser()
    return str(path.absolute()) if path.suffix == ".gguf" else resolved


@functools.cache
def local_weights(path: str) -> str:
    """What ``from_pretrained`` takes for weights behind a URI or in a file to be converted: a folder of the cache.

    It is made once on each machine. Anything else, a local folder or a hub id, is returned as it is.

    Raises:
        InputError: the file or package is not there.
        StageError: the weights are not as they were written.
    """
    if path.startswith("pkg://") or Path(path).suffix == ".gguf":
        return resolve(Model(id=path))
    if "://" not in path:
        return path
    source = Folder(path)
    if source.local is not None:
        return str(source.local)
    target = cache_folder() / "weights" / hashlib.sha256(source.read_bytes(CONTENTS)).hexdigest()[:32]
    try:
        return str(make_once(target, lambda folder: fetch_verified(source, folder)))
    except DamagedError as error:
        raise StageError(f"{source} is damaged: {error}; delete its stage, and the same command redoes it") from None


def is_adapter(path: str) -> bool:
    """Whether the folder holds a PEFT adapter rather than a whole model."""
    return (Path(path) / "adapter_config.json").is_file()


def pinned(model: Model, file: str = "config.json") -> Model:
    """The model with the hub's commit as its revision, so that every worker and every later run takes the same weights.

    Args:
        file: one that every model of its kind has.

    Raises:
        InputError: the model is neither here nor on a hub that can be reached.
    """
    path = resolve(model)
    if Path(path).is_dir():
        return model
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        config = hf_hub_download(path, file, revision=model.revision)
    except GatedRepoError:
        raise InputError(f"model.id: {path} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise InputError(f"model.revision: {path} has no revision {model.revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(f"model.id: no folder {path!r} here and no such model on the hub") from None
    except LocalEntryNotFoundError:  # offline, and not in the cache
        raise InputError(f"model.id: no folder {path!r} here, and the hub cannot be asked for it") from None
    except EntryNotFoundError:
        raise InputError(
            f"model.id: {path} on the hub holds no config.json, so it is no whole model; a LoRA adapter is taken from "
            f"a folder: hf download {path} --local-dir FOLDER, and name that as the variant's checkpoint"
        ) from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.id: no folder {path!r} here, and the hub cannot be asked for it: {reason}") from None
    return model.model_copy(update={"revision": Path(config).parent.name})


def model_fingerprint(model: Model) -> str:
    """What identifies the weights: their content where they are local, ``id@commit`` for a :func:`pinned` hub model."""
    path = Path(resolve(model))
    return file_fingerprint(path) if path.is_dir() else f"{model.id}@{model.revision}"


def _package_file(uri: str) -> Path:
    package, _, name = uri.removeprefix("pkg://").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"model.id: {uri}: the package {package} is not installed (pip install {package})")
    path = Path(next(iter(spec.submodule_search_locations))) / name
    if path.is_file():
        return path
    # A file too large for one package lies in several, and the package named offers to put it together.
    assemble = getattr(importlib.import_module(package), "assemble", None)
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
