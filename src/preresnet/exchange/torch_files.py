"""Files of tensors in PyTorch's formats, read as tensors alone: no code of a file is run."""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from preresnet.spec import UserError

WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "weights")
SHOWN = 3  # names in a message


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        UserError: it is no whole one.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole .safetensors file ({error}); restore or export it again") from None


def read_pickled(path: Path, said: list[str]) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``; whatever else it would build is refused unseen.

    Args:
        path: of the file.
        said: is told which part of it is taken, where it holds several.

    Raises:
        UserError: it is no whole one, or holds more than tensors.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(1) not in (b"P", b"\x80"):  # of a zip archive, and of a pickle
            raise UserError(f"{path} is no file of torch.save; give one of model.state_dict(), or another --from")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened:
                if sum(info.file_size for info in opened.infolist()) > size:
                    raise UserError("it is compressed, as torch.save does not do")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UserError as error:
        raise UserError(f"{path}: {error}; export it again") from None
    except pickle.UnpicklingError as error:
        reason = "it holds code or objects beside its tensors" if "Unsupported" in str(error) else "it is damaged"
        raise UserError(
            f"{path} was not loaded: {reason}, and no code of a file is run; save model.state_dict() instead"
        ) from None
    except Exception as error:  # whatever a damaged file does to the reader
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no whole file of torch.save ({words}); export it again") from None
    while isinstance(content, Mapping) and not any(isinstance(one, Tensor) for one in content.values()):
        inner = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            raise UserError(f"{path} holds no tensors, but {some(map(str, content))}; save model.state_dict()")
        said.append(f"of {some(map(str, content))} in the file, {inner} is taken")
        content = content[inner]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; save model.state_dict()")
    strange = [str(name) for name, one in content.items() if not (isinstance(name, str) and isinstance(one, Tensor))]
    if strange:
        raise UserError(f"{path} holds more than tensors: {some(strange)}; save model.state_dict()")
    if content and all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def some(names: Iterable[str]) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "") or "nothing"
