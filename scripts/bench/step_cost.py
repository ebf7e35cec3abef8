"""What a training step costs: fine-tuning alone, with each method and a stored or a live teacher, and with TextBrewer.

    python scripts/bench/step_cost.py

A step is what training does with a batch: collate (and read the cached outputs), forward, backward, clip, AdamW. All
rows train the same layers of a BERT with random weights on the same texts and take turns in one process; peak memory is
taken in processes of their own for each row. A further method is one more line of ``ROWS``. TextBrewer trains in fp32:
it offers no bf16.
"""

import argparse
import functools
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import SHAPES, arguments, bert, finish, ratio, show, summary
from datasets import Dataset, disable_progress_bars
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from itrd_nlp import ITRDArguments, ITRDTrainer, student_from_teacher
from itrd_nlp.export.latency import take_turns
from itrd_nlp.utils.environment import computes_bf16

LAYERS = 3  # of the student
BATCH, LENGTHS = 16, (152, 168)  # texts, and their shortest and longest: a batch of texts of similar length
ITRD, KD = {"losses": {"itrd": {}}}, {"losses": {"kd": {}}}
LIVE: dict[str, Any] = {"teacher_cache": "off"}
LAST, EVERY = {"layer_map": "last"}, {"pooling": "all_tokens"}
EXAMPLES = 88_524  # training windows of SQuAD v1.1 at 384 tokens: what a memory bank holds
ROWS: dict[str, dict[str, Any]] = {  # arguments of the trainer; without losses it fine-tunes
    "fine-tuning": {},
    "fine-tuning, fp32": {"bf16": False},
    "itrd": ITRD,
    "itrd, tokens:32": {**ITRD, "pooling": "tokens:32"},
    "itrd, tokens": {**ITRD, "pooling": "tokens"},
    "kd": KD,
    "itrd + kd": {"losses": {"itrd": {}, "kd": {}}},
    "itrd, compiled": {**ITRD, "torch_compile": True},
    "itrd, live teacher": {**ITRD, **LIVE},
    "kd, live teacher": {**KD, **LIVE},
    "itrd, last layer, live teacher": {**ITRD, **LAST, **LIVE},
    "crd, last layer, live teacher": {"losses": {"crd": {}}, **LAST, **LIVE},
    "wcord, last layer, live teacher": {"losses": {"wcord": {}}, **LAST, **LIVE},
    "textbrewer": {"losses": {"textbrewer": {}}, **EVERY},
    "minilmv2": {"losses": {"minilmv2": {}}, **LAST},
    "srd, tokens": {"losses": {"srd": {}}, **LAST, "pooling": "tokens"},
    "vkd, tokens": {"losses": {"vkd": {}}, **LAST, "pooling": "tokens"},
}
BANKS = ("crd, last layer, live teacher", "wcord, last layer, live teacher")  # rows with a memory bank
# rows whose losses are timed alone
LOSSES = (
    *("itrd", "itrd, tokens:32", "itrd, tokens", "kd", "itrd + kd", "itrd, last layer, live teacher"),
    *(*BANKS, "textbrewer", "minilmv2", "srd, tokens", "vkd, tokens"),
)
MEMORY = ("fine-tuning", "itrd", "itrd, live teacher", "itrd, last layer, live teacher", *BANKS)


class Workload(NamedTuple):
    """What is trained: an image network is one more entry of ``WORKLOADS``."""

    teacher: Callable[[], nn.Module]
    student: Callable[[nn.Module], nn.Module]
    data: Dataset
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]


def texts(count: int = BATCH) -> Dataset:
    """Random tokens with the columns of question answering."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.linspace(*LENGTHS, count).int().tolist():
        ids = torch.randint(1000, 30000, (length,), generator=draw).tolist()
        same = {"attention_mask": [1] * length, "token_type_ids": [0] * length}
        special = {"special_tokens_mask": [1, *[0] * (length - 2), 1]}
        rows.append({"input_ids": ids, **same, **special, "start_positions": 20, "end_positions": 24})
    return Dataset.from_list(rows)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest."""
    longest = max(len(row["input_ids"]) for row in rows)
    pad = {"special_tokens_mask": 1}
    return {
        key: torch.tensor(
            [row[key] + [pad.get(key, 0)] * (longest - len(row[key])) for row in rows]
            if isinstance(rows[0][key], list)
            else [row[key] for row in rows]
        )
        for key in rows[0]
    }


def bert_workload(teacher: Callable[[], nn.Module], layers: int = LAYERS, batch: int = BATCH) -> Workload:
    """Every second (or nth) layer of a BERT trains on random texts."""
    return Workload(
        teacher, lambda model: student_from_teacher(model, f"even:{layers}", verbose=False), texts(batch), collate
    )


WORKLOADS = {shape: bert_workload(functools.cache(functools.partial(bert, shape))) for shape in SHAPES}


def trainer(work: Workload, row: str, folder: Path) -> ITRDTrainer:
    """The trainer of a row, ready to step."""
    teacher, changes = work.teacher(), ROWS[row]
    data = work.data
    if row in BANKS:  # the same texts over and over, as many as a memory bank must hold
        data = data.select([i % len(data) for i in range(EXAMPLES)])
    options = {"teacher_cache": str(folder / "teacher"), "losses": {"itrd": {}}, **changes}
    made = ITRDTrainer(
        model=work.student(teacher),
        teacher_model=teacher if "losses" in changes else None,
        args=ITRDArguments(
            str(folder / "out"), per_device_train_batch_size=len(work.data), disable_tqdm=True, **options
        ),
        train_dataset=data,
        data_collator=work.collate,
    )
    return ready(made)


def ready(made: ITRDTrainer) -> ITRDTrainer:
    """A trainer that has made what Trainer makes when it starts."""
    made.get_train_dataloader()
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    return made


def stepper(made: ITRDTrainer) -> Callable[[], None]:
    """One training step."""
    batch = range(made.args.train_batch_size)

    def step() -> None:
        made.training_step(made.model_wrapped, made.draw(batch))
        norm = torch.nn.utils.clip_grad_norm_(made.model.parameters(), 1.0)
        made.nonfinite.check(norm, made.model, 1)
        made.optimizer.step()
        made.model.zero_grad()

    return step


def textbrewer_stepper(shape: str, folder: Path) -> Callable[[], None]:
    """One step of TextBrewer's loop on the same texts."""
    from textbrewer_side import distiller

    teacher = bert(shape)
    student = student_from_teacher(teacher, f"even:{LAYERS}", verbose=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, fused=True)
    made = distiller(teacher.eval(), student.train(), folder)
    data = texts().remove_columns(["special_tokens_mask", "start_positions", "end_positions"])

    def step() -> None:
        loss, _ = made.train_on_batch(collate(data.to_list()), {"output_hidden_states": True})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def losses_alone(made: ITRDTrainer) -> tuple[Callable[[], None], float]:
    """Forward and backward of the losses on a batch's representations; and MiB they hold beyond inputs and weights."""
    batch = made.draw(range(made.args.train_batch_size))
    model = made.model.train()
    teacher = made.ask_teacher(batch)
    with made.accelerator.autocast():
        _, student = model.extractor(model.student, batch)
    features = tuple(x.detach().requires_grad_() for x in student.features)
    student = student._replace(
        logits={k: v.detach().requires_grad_() for k, v in student.logits.items()}, features=features
    )
    attention, maps = [tuple(x.detach().requires_grad_() for x in some) for some in (student.attention, student.maps)]
    student = student._replace(attention=attention, maps=maps)
    known = {
        x.untyped_storage().data_ptr()
        for some in (features, attention, maps, model.losses.parameters())
        for x in (*some, *teacher.features, *teacher.attention, *teacher.maps)
    }
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    def both() -> None:
        with made.accelerator.autocast():
            terms = [t for loss in model.losses.values() for t in loss(student, teacher, batch).values()]
        torch.stack(terms).sum().backward()
        model.zero_grad()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        both()
    return both, sum(held.values()) / 2**20


def peak_mib(*command: str, processes: int = 3) -> float:
    """The number that a script prints last, by :func:`print_peak`: the median of several processes."""
    words = [sys.executable, *command]
    outputs = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(processes)]
    return statistics.median(float(output.split()[-1]) for output in outputs)


def print_peak(make: Callable[[], ITRDTrainer]) -> None:
    """Print the peak memory of three steps in MiB; on a CPU (Linux) above that of the imports."""
    before = most_resident()
    step = stepper(make())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(most_resident() - before)


def most_resident() -> float:
    """Peak resident memory of this program in MiB; ``getrusage`` would count what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def roofline(shape: str, seconds: float, dtype: torch.dtype) -> dict[str, Any]:
    """FLOPs of a fine-tuning step against the rate of this machine's matrix products, those of its inner layers."""
    student = student_from_teacher(bert(shape, attn_implementation="eager"), f"even:{LAYERS}", verbose=False)
    batch = {k: v for k, v in collate(texts().to_list()).items() if k != "special_tokens_mask"}
    with FlopCounterMode(display=False) as counter:
        student(**batch).loss.backward()
    n, width, inner = BATCH * LENGTHS[1], SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    place: dict[str, Any] = {"dtype": dtype, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    a, b = torch.randn(n, width, **place), torch.randn(width, inner, **place)
    rate = 2 * n * width * inner / min(take_turns({"matmul": lambda: a @ b}, 20)["matmul"])
    flops = counter.get_total_flops()
    return {"flops": flops, "matmul_flops_per_second": rate, "share": flops / seconds / rate}


def where_it_goes(step: Callable[[], None], count: int = 10) -> list[tuple[str, float]]:
    """The operators of a step that take the most time themselves, with their shares."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        step()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [(event.key, getattr(event, own)) for event in seen.key_averages()]
    total = sum(time for _, time in events)
    return [(name, time / total) for name, time in sorted(events, key=lambda e: -e[1])[:count]]


def measure(shape: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rows at one shape."""
    rows = [row for row in options.rows if ROWS[row].get("bf16") is not False or computes_bf16()]
    trainers = {row: trainer(WORKLOADS[shape], row, folder) for row in rows}
    steps = {row: stepper(made) for row, made in trainers.items()}
    if importlib.util.find_spec("textbrewer") and list(options.rows) == list(ROWS):
        steps["TextBrewer, live teacher"] = textbrewer_stepper(shape, folder)
    alone = {row: losses_alone(trainers[row]) for row in LOSSES if row in rows}
    calls = {}
    for row, step in steps.items():
        calls[row] = step
        if row in alone:
            calls[f"losses of {row}"] = alone[row][0]  # with the caches as its own step leaves them
    times = take_turns(calls, options.repeats, warmup=2)
    base = times["fine-tuning"]
    result: dict[str, Any] = {"steps": {}, "losses": {}}
    for row in steps:
        result["steps"][row] = {"seconds": summary(times[row]), "over_finetune": ratio(times[row], base)}
        if row in alone:
            extra = sum(p.numel() for p in trainers[row].model.losses.parameters())
            share = ratio(times[f"losses of {row}"], times[row])
            seconds = summary(times[f"losses of {row}"])
            result["losses"][row] = {"seconds": seconds, "share": share, "mib": alone[row][1], "parameters": extra}
    dtype = torch.bfloat16 if trainers["itrd"].args.bf16 else torch.float32
    result["precision"] = str(dtype).removeprefix("torch.")
    result["roofline"] = roofline(shape, summary(base)["median"], dtype)
    result["profile"] = where_it_goes(steps["itrd"])
    trainers.clear(), steps.clear(), calls.clear(), alone.clear()
    place = ("--shapes", shape, "--folder", str(folder))
    result["peak_mib"] = {row: peak_mib(__file__, "--peak", row, *place) for row in MEMORY if row in rows}
    columns = ["step", "seconds", "±", "over fine-tuning", "losses' share", "parameters beside", "peak MiB"]
    lines = []
    for row, step in result["steps"].items():
        losses = result["losses"].get(row)
        beside = [losses["share"]["median"], losses["parameters"]] if losses else ["", ""]
        took = step["seconds"]
        lines.append([row, took["median"], took["spread"], step["over_finetune"]["median"], *beside])
        lines[-1].append(result["peak_mib"].get(row, ""))
    print(
        f"{shape}, {LAYERS} layers, {BATCH} texts of {LENGTHS[0]} to {LENGTHS[1]} tokens, {result['precision']}, "
        f"n = {options.repeats}"
    )
    show(columns, lines)
    return result


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["minilm", "bert-base"], choices=list(SHAPES))
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="fine-tuning and itrd at least"
    )
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--peak", help="print the peak memory of one row and end")
    parser.add_argument("--folder", type=Path, help="where cached teacher outputs are, for --peak")
    options = parser.parse_args()
    if not {"fine-tuning", "itrd"} <= {*options.rows}:
        parser.error("--rows: expected fine-tuning and itrd among them, which the others are compared with")
    disable_progress_bars()
    if options.peak:
        print_peak(lambda: trainer(WORKLOADS[options.shapes[0]], options.peak, options.folder))
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        shapes = {shape: measure(shape, options, Path(folder)) for shape in options.shapes}
    last = shapes[options.shapes[-1]]
    shares = {row: losses["share"]["median"] for row, losses in last["losses"].items()}
    names = {"itrd": "itrd_share", "itrd, tokens:32": "itrd_tokens_32_share", "itrd, tokens": "itrd_tokens_share"}
    result = {
        **{name: shares[row] for row, name in names.items() if row in shares},
        "itrd_extra_mib": last["losses"]["itrd"]["mib"],
        "cached_over_finetune": last["steps"]["itrd"]["over_finetune"]["median"],
        "cached_memory_over_finetune": last["peak_mib"]["itrd"] / last["peak_mib"]["fine-tuning"],
        "shape": options.shapes[-1],
    }
    shared = {
        "setting": {
            **{"batch": BATCH, "lengths": LENGTHS, "layers": LAYERS, "examples": EXAMPLES},
            "seconds": time.perf_counter() - started,
        }
    }
    finish("step_cost", result, {"shapes": shapes, **shared}, options)


if __name__ == "__main__":
    main()
