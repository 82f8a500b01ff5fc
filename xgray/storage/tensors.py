"""Tensors that stages leave on disk, as safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.errors import StageError
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from numpy.typing import NDArray


AGAIN = "delete it, and the same command makes it again"


def read_tensors(folder: Folder, file: str, *names: str, remedy: str = AGAIN) -> dict[str, NDArray[Any]]:
    """All tensors of a file, in which ``names`` must be.

    Raises:
        StageError: it is damaged; ours are written whole, so something else has cut it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(folder.read_bytes(file))
    except SafetensorError as error:
        raise StageError(f"{folder / file} is damaged ({error}); {remedy}") from None
    if missing := [name for name in names if name not in tensors]:
        raise StageError(f"{folder / file} is damaged (it holds no {', '.join(missing)}); {remedy}")
    return tensors
