"""Files of what a network sees in images: a row of numbers for each, as nearest neighbours are looked for in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from preresnet.spec import UserError
from preresnet.train.checkpoint import write_atomically


def check(out: Path) -> None:
    """Refuse a file that is there already or that cannot be written.

    Raises:
        UserError: the file, or the one of its paths, is there; another kind than ``.npy`` and ``.parquet``; no pyarrow.
    """
    if out.suffix not in (".npy", ".parquet"):
        raise UserError(f"{out}: embeddings are written as .npy or .parquet; give another --out")
    for file in (out, out.with_suffix(".txt")):
        if file.exists():
            raise UserError(f"{file} is there already; give another --out")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401 - before an hour of computing
        except ImportError:
            raise UserError("a .parquet file needs pyarrow; pip install 'preresnet[parquet]', or give a .npy") from None


def write(out: Path, paths: Sequence[Path], rows: Tensor) -> list[Path]:
    """Write them.

    Args:
        out: as `check` takes it.
        paths: of the images.
        rows: (n, width) float32.

    Returns:
        The files.

    Raises:
        NotWrittenError: the disk is full, say.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [str(path) for path in paths]
    if out.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.numpy().reshape(-1)), rows.shape[1])
        table = pyarrow.table({"image": names, "embedding": values})
        write_atomically(out, lambda partial: pyarrow.parquet.write_table(table, partial))
        return [out]

    def save(partial: Path) -> None:
        with open(partial, "wb") as file:  # numpy adds .npy to a name without it
            np.save(file, rows.numpy())

    write_atomically(out, save)
    listed = out.with_suffix(".txt")
    text = "".join(f"{name}\n" for name in names)
    write_atomically(listed, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))
    return [out, listed]
