"""The index of a shard: where images lie in a tar file, and their classes; a Parquet file becomes a tar file first."""

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.core import url_to_fs

from preresnet.data import images
from preresnet.data.scan import cache_folder
from preresnet.fields import UserError

VERSION = 1  # of an index: another one makes it anew
LABEL_ENDS = ("cls", "txt", "json")  # which hold a label, the first that is there
LARGEST_LABEL = 10_000  # bytes
ROWS = 64  # of a Parquet file at a time


def of(shard: str) -> dict[str, Any]:
    """What is in a shard, from its index, or from itself.

    Args:
        shard: address of a tar or Parquet file.

    Returns:
        ``name``, ``label`` (bytes), ``offset`` and ``size`` of each image, ``left_out`` (JSON, by kind) and ``packed``,
        the address of the tar file that holds the images.

    Raises:
        UserError: it cannot be read.
    """
    system, path = url_to_fs(shard)
    try:
        state = f"{VERSION} {system.size(path)} {system.ukey(path)}"
    except Exception as error:  # whatever a file system's library raises
        raise UserError(f"{shard} cannot be read ({error})") from None
    key = hashlib.sha256((os.path.abspath(shard) if "://" not in shard else shard).encode()).hexdigest()[:20]
    kept = cache_folder() / f"shard-{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError):
        with np.load(kept, allow_pickle=False) as stored:
            found = dict(stored)
        if str(found["state"]) == state and ("://" in str(found["packed"]) or os.path.isfile(str(found["packed"]))):
            return found
    packed = shard
    if shard.endswith(".parquet"):
        packed = str(kept.with_suffix(".tar"))
        cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        _unpack(shard, Path(packed))
    found = _of_tar(packed, shard) | {"state": np.array(state), "packed": np.array(packed)}
    try:
        cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **found)
        os.replace(partial, kept)
    except OSError:  # it is made again the next time
        pass
    return found


def _of_tar(packed: str, shard: str) -> dict[str, Any]:
    """The index of a tar file."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, tuple[int, str]] = {}
    left_out: Counter[str] = Counter()
    try:
        with fsspec.open(packed, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[arg-type]
            for member in tar:
                folder, _, last = member.name.removeprefix("./").rpartition("/")
                stem, _, end = last.partition(".")
                if not member.isreg() or member.issparse() or last.startswith("."):
                    left_out["not a regular file" if not last.startswith(".") else "hidden"] += not member.isdir()
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if end.lower() in LABEL_ENDS:
                    rank = LABEL_ENDS.index(end.lower())
                    text = _label(tar, member) if rank <= labels.get(key, (9, ""))[0] else None
                    if text is not None:
                        labels[key] = rank, text
                elif f".{end.rsplit('.', 1)[-1].lower()}" in images.extensions():
                    pictures[key] = member.name.removeprefix("./"), member.offset_data, member.size
                else:
                    left_out[f".{end}" if end else "without an extension"] += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard} is no whole tar file ({error}); get a whole copy") from None
    rows = []
    for key, (name, offset, size) in pictures.items():
        label = labels[key][1] if key in labels else key.rpartition("/")[0].rpartition("/")[2]
        if not label:
            raise UserError(f"{shard}: {name} has no label: no {key}.cls, and it lies in no folder of a class")
        rows.append((name, label, offset, size))
    return {
        "name": np.array([os.fsencode(row[0]) for row in rows], dtype=np.bytes_),
        "label": np.array([os.fsencode(row[1]) for row in rows], dtype=np.bytes_),
        "offset": np.array([row[2] for row in rows], dtype=np.int64),
        "size": np.array([row[3] for row in rows], dtype=np.int64),
        "left_out": np.array(json.dumps(left_out)),
    }


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """What a member says of the class: text, or the ``label`` of an object in JSON."""
    if member.size > LARGEST_LABEL:
        return None
    file = tar.extractfile(member)
    text = file.read().decode("utf-8", "surrogateescape").strip() if file else ""
    if not member.name.lower().endswith(".json"):
        return text or None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    label = found.get("label", found.get("cls")) if isinstance(found, dict) else None
    return str(label) if isinstance(label, str | int) else None


def _unpack(shard: str, out: Path) -> None:
    """Copy the images of a Parquet file into a tar file.

    Raises:
        UserError: pyarrow is missing, or the file has no column of images or of labels.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{shard}: to read Parquet files, pip install 'preresnet[parquet]'") from None
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with fsspec.open(shard, "rb") as file, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            table = parquet.ParquetFile(file)
            image, label, names = _columns(table.schema_arrow, shard)
            number = 0
            for batch in table.iter_batches(ROWS, columns=[image, label]):
                for row in batch.to_pylist():
                    for name, data in _members(row[image], row[label], names, number):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    number += 1
        os.replace(partial, out)
    except UserError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises many kinds
        raise UserError(f"{shard} cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    finally:
        partial.unlink(missing_ok=True)


def _columns(schema: Any, shard: str) -> tuple[str, str, list[str]]:
    """Columns of images and of labels, and the names of the classes, which Hugging Face keeps beside the schema."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    image = next((field.name for field in schema if _is_image(field.type)), None)
    label = next((name for name in ("label", "labels", "fine_label", "class") if name in schema.names), None)
    kinds = [name for name, one in features.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"]
    label = label or next(iter(kinds), None)
    if image is None or label is None:
        missing = "column of images (a struct with bytes)" if image is None else "column named label"
        raise UserError(f"{shard} has no {missing}; it has {', '.join(schema.names)}")
    return image, label, list(features.get(label, {}).get("names") or [])


def _is_image(kind: Any) -> bool:
    return hasattr(kind, "get_field_index") and kind.get_field_index("bytes") >= 0


def _members(image: Any, label: Any, names: list[str], number: int) -> Iterator[tuple[str, bytes]]:
    """An image of a row and its label, as members of a tar file."""
    if not image or image.get("bytes") is None or label is None:
        return
    path = image.get("path") or ""
    end = os.path.splitext(path)[1].lower()
    key = f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', os.path.splitext(os.path.basename(path))[0])}".rstrip("-")
    text = names[label] if names and isinstance(label, int) and 0 <= label < len(names) else str(label)
    yield f"{key}{end if end in images.extensions() else '.jpg'}", image["bytes"]
    yield f"{key}.cls", text.encode("utf-8", "surrogateescape")
