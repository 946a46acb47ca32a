from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "paper.ipynb"


def test_the_notebook_runs() -> None:
    """Its assertions are those of the paper's equations."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    pictures = ["image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum(pictures) == 8  # Eq. 3 and 4 share one
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "preact: will train. " in printed
    assert "the two ways agree to" in printed
