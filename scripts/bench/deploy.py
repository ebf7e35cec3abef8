"""A student as ONNX int8 against its teacher in PyTorch fp32: quality kept, times smaller, times faster.

    python scripts/bench/deploy.py --teacher FOLDER --student FOLDER --validation_file validation.json --record

Both are measured in every form, as by `itrd benchmark`; the student may be shown beside further ones (--rivals).
"""

from pathlib import Path

import torch
from common import arguments, finish

from itrd_nlp.experiments.benchmark import benchmark, by_short_name
from itrd_nlp.experiments.benchmark_report import benchmark_table
from itrd_nlp.experiments.evaluation import evaluation_task


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--rivals", type=Path, nargs="*", default=[], help="further models for the table")
    parser.add_argument("--task", default="squad")
    parser.add_argument("--validation_file", type=Path, help="not for task toy, which makes its own")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    words = ["--task", options.task, "--disable_tqdm", "true"]
    if options.validation_file:
        words += ["--validation_file", str(options.validation_file)]
    task, training_args = evaluation_task(str(options.teacher), words)
    models = {"teacher": str(options.teacher), "student": str(options.student)}
    models |= by_short_name([str(path) for path in options.rivals]) if options.rivals else {}
    how = {name: getattr(options, name) for name in ("lengths", "batches", "threads", "repeats")}
    measured = benchmark(models, task, training_args, **how)
    print(f"\n{benchmark_table(measured).markdown()}\n", flush=True)
    finish("deploy", headline(measured), {"measured": measured}, options)


def headline(measured: dict) -> dict[str, float]:
    """The student as ONNX int8 over the teacher in PyTorch fp32: shares of each metric kept, size and speed."""
    rows = {(row["name"], row["form"]): row for row in measured["rows"]}
    teacher, student = rows["teacher", "PyTorch fp32"], rows["student", "ONNX int8"]
    scored = [name for name in measured["metric_names"] if teacher["metrics"][name]]
    made = {f"{name}_kept": student["metrics"][name] / teacher["metrics"][name] for name in scored}
    made["times_smaller"] = teacher["mib"] / student["mib"]
    for length in map(str, measured["lengths"]):
        for batch in map(str, measured["batches"]):
            over = teacher["ms"][length][batch]["median"] / student["ms"][length][batch]["median"]
            made[f"times_faster_{batch}x{length}"] = over
    return made


if __name__ == "__main__":
    main()
