"""Read the safetensors files that stages write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.errors import StageError
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from numpy.typing import NDArray


REMAKE_FILE = "delete it, and the same command makes it again"


def read_tensors(folder: Folder, file: str, *required: str, remedy: str = REMAKE_FILE) -> dict[str, NDArray[Any]]:
    """Return all tensors of a safetensors file, by name.

    Args:
        required: Names of tensors that the file must hold.
        remedy: What the user is to do about a damaged file, for the message.

    Raises:
        StageError: the file is damaged. Files are written whole, so something else has cut it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(folder.read_bytes(file))
    except SafetensorError as error:
        raise StageError(f"{folder / file} is damaged ({error}); {remedy}") from None
    if missing := [name for name in required if name not in tensors]:
        raise StageError(f"{folder / file} is damaged (it holds no {', '.join(missing)}); {remedy}")
    return tensors
