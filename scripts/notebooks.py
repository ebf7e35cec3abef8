"""Runs the notebooks from top to bottom and keeps their outputs in them: what they print, tables and pictures.

    python scripts/notebooks.py [NAME ...]

A notebook runs in its own folder, where its models stay below runs/; so does `jupyter lab notebooks`. Progress bars and
warnings, which change from run to run, are not kept.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def execute(notebook: NotebookNode, folder: Path, timeout: int = 1800) -> NotebookNode:
    """Run a notebook with ``folder`` as its working directory, this Python as its kernel.

    Args:
        timeout: seconds a cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    where = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=where, coalesce_streams=True)
    client.execute()
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave out of the outputs what is of one run or one machine alone."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of notebooks, e.g. 03_comparing_methods; all of them by default")
    names = parser.parse_args().names
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(execute(nbformat.read(path, 4), FOLDER), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
