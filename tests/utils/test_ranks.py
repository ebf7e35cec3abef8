"""Values that the first process finds, on every process."""

import json
from pathlib import Path

from experiments.test_run import SMALL
from forked import on_ranks
from itrd_nlp.experiments import output_folder, scoring, train, trainings
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.ranks import from_first_rank


def what_ranks_find(folder):
    """What each of two ranks hears where the first finds something, refuses, or fails."""
    args = ITRDArguments(folder, use_cpu=True)

    def refuse():
        raise UserError("not this")

    def found(find):
        try:
            return from_first_rank(find, args)
        except (UserError, RuntimeError, ZeroDivisionError) as error:
            return f"{type(error).__name__}: {error}"

    return [found(lambda: {"rank": args.process_index}), found(refuse), found(lambda: 1 / 0)]


def run_beside_another(folder):
    """A run whose second rank sees results of another run, which appeared after the first had looked for them."""
    places = [word for name in ("output_dir", "shared_dir") for word in (f"--{name}", f"{folder}/{name}")]
    arguments = parse(f"{folder}/recipe.yaml", [*places, "--teacher_cache", f"{folder}/cache"])
    rank = arguments[1].process_index
    if rank == 1:
        there = {"files": {}, "seconds": -1.0, "terms": [], "projectors": 0, "metrics": {"f1": -1.0}, "examples": {}}
        is_file = Path.is_file
        results = ("finished.json", "output_folder.json")
        Path.is_file = lambda path: path.name in results or path.parent.name == "evaluated" or is_file(path)
        for module in (trainings, output_folder, scoring, train):
            module.read_json = lambda path: there
    record = run(*arguments)
    return [[record.metrics, record.seconds["student"] > 0, [*record.terms]], what_ranks_find(folder)]


def test_results_that_appear_between_two_looks_part_no_ranks(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(SMALL))
    (first, said), (second, heard) = on_ranks(run_beside_another, tmp_path)
    assert first == second and first[1] and first[0]["student"]["f1"] >= 0
    assert said == [{"rank": 0}, "UserError: not this", "ZeroDivisionError: division by zero"]
    assert heard[:2] == said[:2] and heard[2].startswith("RuntimeError: the first process failed: ZeroDivisionError")
