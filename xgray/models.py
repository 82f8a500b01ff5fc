"""Where a model's weights come from, and loading them: a hub id, a folder, a GGUF file, a file in a package.

GGUF weights are converted once into a plain safetensors folder below the cache (``XGRAY_CACHE``, by default
``~/.cache/xgray``), so that the trainer and every engine read the same bytes.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import importlib.util
import logging
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import Model
from xgray.errors import InputError, StageError
from xgray.rows import Prompt
from xgray.runs import file_fingerprint
from xgray.sealed import CONTENTS, DamagedError, unseal
from xgray.storage import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust tell what the operating system said."""


def cache_folder() -> Path:
    return Path(os.environ.get("XGRAY_CACHE") or Path.home() / ".cache" / "xgray")


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


def portable(model: Model) -> str:
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
        return str(_made_once(target, lambda folder: unseal(source, folder)))
    except DamagedError as error:
        raise StageError(f"{source} is damaged: {error}; delete its stage, and the same command redoes it") from None


def _made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """The folder, which ``make`` fills under another name if it is not there; others of this machine wait for that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            working = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
            working.mkdir()
            try:
                make(working)
                working.rename(target)
            finally:
                shutil.rmtree(working, ignore_errors=True)
    return target


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
        working = target.with_name(f"{name}.tmp-{uuid.uuid4().hex[:8]}")
        working.parent.mkdir(parents=True, exist_ok=True)
        try:
            assemble(working)
            working.rename(target)
        except ImportError as error:
            raise InputError(f"model.id: {uri}: {error}; pip install 'xgray[gemma]'") from None
        finally:
            working.unlink(missing_ok=True)
    return target


def converted(gguf: Path) -> Path:
    """The safetensors folder made of a GGUF file, in the cache by content; made on first use.

    Raises:
        OSError: the cache's disk is full, or refuses otherwise.
    """
    digest = file_fingerprint(gguf)
    target = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (target / "config.json").is_file():
        return target
    log.info("converting %s to safetensors (once)", gguf.name)
    return _made_once(target, lambda folder: _convert(gguf, folder))


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers imports, warns that it is so
    folder, name = str(gguf.parent), gguf.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # save_pretrained refuses a model that was loaded from GGUF, so its weights move into a plain one.
    config = loaded.config.__class__(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    save(plain, target)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    if _adds_bos(gguf) and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        # transformers drops this flag; Gemma without its first token writes nonsense.
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    save(tokenizer, target)


def save(part: Any, folder: Path) -> None:
    """Write a model or a tokenizer into a folder.

    Raises:
        OSError: the disk is full, or refuses otherwise.
    """
    try:
        part.save_pretrained(folder)
    except Exception as error:  # safetensors has a type of its own for it, tokenizers none at all
        refused = OS_ERROR.search(str(error))
        if refused is None:
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


def _adds_bos(gguf: Path) -> bool:
    """Whether texts are to start with the beginning-of-text token: one flag of the file, without parsing the rest."""
    key = b"tokenizer.ggml.add_bos_token"
    with gguf.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # A GGUF entry is its key, four bytes of type (7: bool) and its value.
        start = content.find(key) + len(key)
        return start >= len(key) and content[start : start + 5] == b"\x07\0\0\0\x01"


def device_name() -> str:
    """Where models run in this process: the GPU where there is one, otherwise this machine's cores."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"


def context_length(config: Any) -> int:
    """The longest sequence that a model of this Hugging Face configuration takes; 2**31 where it names none (BLOOM)."""
    text_config = config.get_text_config()
    named = (getattr(text_config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(one) for one in named if one is not None and one > 0), 2**31)  # XLNet says -1


def check_lengths(
    blocks: Iterable[Sequence[Prompt]], tokenizer: PreTrainedTokenizerBase, limit: int, reason: str
) -> None:
    """Refuse prompts that a model cannot go on from.

    Args:
        limit: the most tokens of a prompt, for a ``reason`` that the message names.

    Raises:
        InputError: names the prompts that are empty, or those that are longer.
    """
    empty: list[str] = []
    long: list[str] = []
    for prompts in blocks:
        for prompt, ids in zip(prompts, tokenizer([one.text for one in prompts])["input_ids"], strict=True):
            if not ids or not prompt.text.strip():
                empty.append(prompt.prompt_id)
            if len(ids) > limit:
                long.append(f"{prompt.prompt_id} ({len(ids)})")
    for problem, found in (
        ("prompts without any text", empty),
        (f"prompts longer than {limit} tokens ({reason})", long),
    ):
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise InputError(f"{problem}: {', '.join(found[:5])}{more}")


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [])


def load_config(path: str, revision: str | None = None) -> Any:
    """The model's Hugging Face configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(local_weights(path), revision=revision)


def load_skeleton(path: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model without its weights, to ask for the shapes of its modules."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(path, revision))
    return model


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left, with a padding token (the end-of-text token where it has none)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_weights(path), revision=revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(path: str, dtype: str, revision: str | None = None, device: str | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode, on ``device`` (by default CUDA where there is one).

    Raises:
        InputError: the weights are missing, torn, or those of another kind of model.
    """
    from transformers import AutoModelForCausalLM

    return _loaded(AutoModelForCausalLM, path, dtype, revision, device)[0]


def load_model(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a section of the experiment file, as :func:`load_causal_lm` gives it, and its tokenizer.

    Raises:
        InputError: its weights are missing, torn, or those of another kind of model.
    """
    path = resolve(model)
    return load_causal_lm(path, model.dtype, model.revision), load_tokenizer(path, model.revision)


def load_sequence_classifier(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """A sequence classifier in evaluation mode, on CUDA where there is one; its weights are safetensors.

    Raises:
        InputError: the weights are missing, in part or all, torn, or those of another kind of model.
    """
    from transformers import AutoModelForSequenceClassification

    model, info = _loaded(AutoModelForSequenceClassification, path, dtype, revision, use_safetensors=True)
    if missing := sorted(info["missing_keys"]):  # transformers makes them up at random
        raise InputError(f"cannot load the model {path!r}: it has no weights {', '.join(missing[:3])}: no classifier")
    return model


def _loaded(
    kind: Any, path: str, dtype: str, revision: str | None, device: str | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of the weights that it found."""
    import torch
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            local_weights(path), revision=revision, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    # Files that are missing, an architecture of another kind, a file that is torn.
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load the model {path!r}: {str(error).splitlines()[0]}") from None
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), info
