"""The notebooks are whole, show what the package says, and run from top to bottom."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.training.record import Record
from itrd_nlp.utils.io import read_json

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_distil_bert_on_squad", "02_what_the_losses_measure", "03_comparing_methods"]
HERE = re.compile(r"(?<![\w.])/(?:home|root|tmp|var|opt|mnt|usr|Users)\b|[A-Z]:\\\\")  # paths of one machine


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook, kind):
    """What the cells of a notebook display of one MIME type."""
    return [o.data[kind] for cell in code_cells(notebook) for o in cell.outputs if kind in o.get("data", {})]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_all_of_them_are_there():
    assert [path.stem for path in PATHS] == NAMES


def test_the_format_is_valid_and_the_file_small(path):
    nbformat.validate(nbformat.read(path, 4))
    assert path.stat().st_size < 400_000


def test_every_cell_compiles_and_defines_nothing(path):
    for cell in code_cells(nbformat.read(path, 4)):
        code = TransformerManager().transform_cell(cell.source)
        compile(code, path.name, "exec")
        assert not re.search(r"^\s*(def|class|for|while|if|try|with)\b", code, re.MULTILINE), code  # no logic


def test_outputs_are_kept_and_belong_to_no_machine(path):
    notebook = nbformat.read(path, 4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # run once, from top to bottom
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)
    text = json.dumps([{k: v for k, v in o.get("data", o).items() if k != "image/png"} for o in outputs])
    assert not HERE.search(text), HERE.search(text)
    assert "\\r" not in text and "%|" not in text  # progress bars


def test_the_table_of_the_comparison_is_that_of_its_records():
    records = [Record.read(path) for path in sorted((ROOT / "scripts" / "results" / "comparison").glob("*.json"))]
    notebook = nbformat.read(ROOT / "notebooks" / "03_comparing_methods.ipynb", 4)
    assert shown(notebook, "text/markdown") == [comparison_table(records).markdown()], (
        "stale: run python scripts/notebooks.py 03_comparing_methods"
    )


def test_what_is_of_one_run_alone_is_not_kept():
    tidy = module(ROOT / "scripts" / "notebooks.py").tidy
    cell = nbformat.v4.new_code_cell("1", metadata={"execution": {"iopub.execute_input": "now"}})
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=name) for name in ("stderr", "stdout")]
    made = tidy(nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3"}}))
    assert [output.text for output in made.cells[0].outputs] == ["stdout"]
    assert not made.cells[0].metadata and set(made.metadata) == {"kernelspec"}
    nbformat.validate(made)


@pytest.mark.slow
def test_they_run_one_after_the_other(tmp_path):
    execute = module(ROOT / "scripts" / "notebooks.py").execute
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "measuring.py", folder)
    shutil.copytree(ROOT / "scripts" / "results", tmp_path / "scripts" / "results")
    made = {path.stem: execute(nbformat.read(path, 4), folder) for path in PATHS}
    for path in PATHS:  # each cell shows what the kept one shows, in other numbers
        pairs = zip(code_cells(made[path.stem]), code_cells(nbformat.read(path, 4)), strict=True)
        for now, kept in pairs:
            kinds = [[sorted(o.get("data", [o.get("name")])) for o in cell.outputs] for cell in (now, kept)]
            assert kinds[0] == kinds[1], now.source
    models = read_json(folder / "runs" / "toy" / "t1-itrd" / "models.json")
    assert set(models) == {"teacher", "baseline", "student"} and all((folder / m).is_dir() for m in models.values())
    record = Record.read(folder / "runs" / "toy" / "t1-itrd" / "record.json")
    assert record.metrics["student"]["f1"] > record.metrics["baseline"]["f1"]
    (histogram, grams) = shown(made["02_what_the_losses_measure"], "image/png")
    assert histogram != grams and "reusing" in str(code_cells(made["02_what_the_losses_measure"])[0].outputs)
