"""docs/performance.md and the table of costs in docs/results.md from the records of the benchmarks.

python scripts/bench/page.py [--check]
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from common import origin

from itrd_nlp.experiments.benchmark_report import benchmark_table
from itrd_nlp.experiments.report import with_section
from itrd_nlp.utils.tables import markdown_table, metric_title

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "docs" / "results.md"
TEMPLATE = Path(__file__).with_name("page.md")
RECORDS = ROOT / "scripts" / "results" / "bench"

GPU_FLOPS, GPU_SHARE, GPUS, GPU_SCALING = 312e12, 0.35, 8, 0.9  # A100 in bf16, and what we assume of it
SQUAD_WINDOWS, SQUAD_EPOCHS = 88_500, 3
TEXTS, TEXT_TOKENS = 100_000_000, 128
WIDTH = 768


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers to three digits."""

    def cell(value: Any) -> str:
        return number(value) if isinstance(value, float) else str(value)

    return markdown_table(columns, [list(map(cell, row)) for row in rows])


def number(value: float, like: float | None = None) -> str:
    """Three digits, or as many decimals as a number ``like`` gets."""
    size = abs(value if like is None else like)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(size))) if size else 0}f}"


def spread(summary: dict[str, float], unit: float = 1) -> str:
    """Median and half the interquartile range."""
    median = unit * summary["median"]
    return f"{number(median)} ± {number(unit * summary['spread'], like=median)}"


class Target(NamedTuple):
    what: str
    got: float
    holds: Callable[[float, float], bool]
    aim: float
    bound: str = ""  # what stands in the way where it is missed


def targets(step: dict[str, Any], end: dict[str, Any], evaluation: dict[str, Any], alignment: dict[str, Any]) -> str:
    """What was aimed at, what was measured, and what bounds the rest."""
    setting, shape = step["setting"], step["shapes"]["bert-base"]
    tokens, parameters = setting["batch"] * sum(setting["lengths"]) / 2, shape["losses"]["itrd"]["parameters"]
    products = 6 * setting["layers"] * tokens * WIDTH**2 / shape["roofline"]["flops"]
    rivals = (
        [
            Target("TextBrewer's loop / ours, end to end", end["textbrewer_over_ours"], float.__ge__, 3.0),
            Target("F1 of ours minus TextBrewer's", end["f1_ours"] - end["f1_textbrewer"], float.__ge__, 0.0),
            Target("EM of ours minus TextBrewer's", end["em_ours"] - end["em_textbrewer"], float.__ge__, 0.0),
        ]
        if "textbrewer_over_ours" in end
        else []
    )  # where it is installed
    held, base = parameters * 16 / 2**20, shape["peak_mib"]["fine-tuning"]
    rows = [
        Target(
            "ITRD on pooled layers, share of a step",
            step["itrd_share"],
            float.__le__,
            0.01,
            "it is some two hundred small operators, whatever their size, and weights that come from memory",
        ),
        Target("its memory beyond the projections, MiB", step["itrd_extra_mib"], float.__le__, 2.0),
        Target(
            f"ITRD on every token, share of a step ({shape['precision']})",
            step["itrd_tokens_share"],
            float.__le__,
            0.08,
            f"the projections' matrix products alone are {products:.1%} of the FLOPs of fine-tuning, d² a token three "
            "times, before any statistics; `tokens:32` is the way out",
        ),
        Target(
            "a step with ITRD on pooled layers and cached outputs / fine-tuning",
            step["cached_over_finetune"],
            float.__le__,
            1.03,
            "the losses' own share, and the projections in AdamW",
        ),
        Target(
            "the same where teacher and student have tokenizers of their own",
            alignment["aligned_over_finetune"],
            float.__le__,
            1.03,
            "the losses' own share, and the projections in AdamW",
        ),
        Target(
            "peak memory, a step with ITRD and one without",
            step["cached_memory_over_finetune"],
            float.__le__,
            1.05,
            f"the projections' weights, gradients and AdamW's moments are {held:.0f} MiB, {held / base:.1%} of "
            "fine-tuning's peak; `projection: shared` holds a third of it",
        ),
        *rivals,
        Target("padded fine-tuning / ours, end to end", end["padded_finetune_over_ours"], float.__ge__, 1.5),
        Target("evaluation padded and in loops / ours", evaluation["reference_over_ours"], float.__ge__, 2.0),
    ]
    signs = {float.__le__: "≤", float.__ge__: "≥"}
    missed = [row for row in rows if not row.holds(row.got, row.aim)]
    cells = [
        [row.what, f"{signs[row.holds]} {row.aim:g}", number(row.got), "missed" if row in missed else ""]
        for row in rows
    ]
    made = table(["at BERT-base shapes where a step is meant", "aim", "measured", ""], cells)
    reasons = [f"- {row.what}, {number(row.got)}: {row.bound or 'see below'}." for row in missed]
    return made + ("\n\nMissed:\n\n" + "\n".join(reasons) if missed else "")


def steps(shape: str, measured: dict[str, Any], setting: dict[str, Any]) -> str:
    """The rows of one shape."""
    rows = []
    for name, step in measured["steps"].items():
        alone = measured["losses"].get(name)
        peak = measured["peak_mib"].get(name)
        rows.append(
            [
                name,
                spread(step["seconds"], 1e3),
                spread(step["over_finetune"]),
                f"{alone['share']['median']:.2%}" if alone else "",
                f"{alone['mib']:.2f}" if alone else "",
                f"{alone['parameters']:,}" if alone else "",
                f"{peak:.0f}" if peak else "",
            ]
        )
    columns = ["step", "ms", "over fine-tuning", "losses' share", "losses keep, MiB", "parameters beside", "peak, MiB"]
    first = next(iter(measured["steps"].values()))["seconds"]["n"]
    low, high = setting["lengths"]
    head = (
        f"`{shape}`: {setting['layers']} student layers, {setting['batch']} texts of {low} to {high} tokens, "
        f"{measured['precision']} unless said otherwise, n = {first}:"
    )
    return f"{head}\n\n{table(columns, rows)}"


def aligned(record: dict[str, Any]) -> str:
    """Steps of students with tokenizers of their own, over fine-tuning."""
    columns = ["step", *(f"`{shape}`, ms" for shape in record["shapes"])]
    columns += [f"`{shape}`, over fine-tuning" for shape in record["shapes"]]
    rows = []
    for name in next(iter(record["shapes"].values()))["steps"]:
        measured = [shape["steps"][name] for shape in record["shapes"].values()]
        row = [spread(step["seconds"], 1e3) for step in measured]
        rows.append([name, *row, *(spread(step["over_finetune"]) for step in measured)])
    return table(columns, rows)


def aligned_setting(record: dict[str, Any]) -> str:
    """What was trained, in words."""
    setting, shape = record["setting"], next(iter(record["shapes"].values()))
    lengths = [f"{low} to {high} tokens of the {model}" for model, (low, high) in shape["tokens"].items()]
    repeats = record["options"]["repeats"]
    return (
        f"{setting['layers']} student layers, {setting['batch']} texts of {' and '.join(lengths)}, "
        f"{shape['precision']}, n = {repeats}"
    )


METHODS = {  # rows of step_cost.py whose losses are set side by side, each with what it compares
    "itrd": "ITRD, one mean a text, every layer",
    "itrd, last layer, live teacher": "ITRD, one mean a text, last layer",
    "crd, last layer, live teacher": "CRD, one mean a text, last layer",
    "wcord, last layer, live teacher": "WCoRD, one mean a text, last layer",
    "kd": "KD, logits",
    "itrd, tokens": "ITRD, every token, every layer",
    "textbrewer": "TextBrewer's losses, every token, every layer",
    "minilmv2": "MiniLMv2, every token, last layer",
    "srd, tokens": "SRD, every token, last layer",
    "vkd, tokens": "VkD, every token, last layer",
}


def methods(shape: dict[str, Any]) -> str:
    """The losses of the methods alone, over those of ITRD on the last layer."""
    base = shape["losses"]["itrd, last layer, live teacher"]
    peak = shape["peak_mib"]
    rows = []
    for name, title in METHODS.items():
        alone = shape["losses"][name]
        held = f"{peak[name] - peak['fine-tuning']:+.0f}" if "live" in name and name in peak else ""
        rows.append(
            [
                title,
                spread(alone["seconds"], 1e3),
                number(alone["seconds"]["median"] / base["seconds"]["median"]),
                f"{alone['share']['median']:.2%}",
                number(alone["mib"]),
                f"{alone['parameters']:,}",
                held,
            ]
        )
    columns = [
        "losses",
        "ms",
        "over ITRD's",
        "share of its step",
        "keep, MiB",
        "parameters",
        "peak over fine-tuning, MiB",
    ]
    return table(columns, rows)


def parity(record: dict[str, Any]) -> str:
    """TextBrewer's losses in our trainer and in its own library."""
    rows = []
    for name, title in (("ours", "its losses, our trainer"), ("textbrewer", "its library")):
        scores = record["scores"][name]
        quality = []
        for key in ("exact_match", "f1"):
            values = [score[key] for score in scores]
            quality.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        rows.append([title, spread(record["steps"][name]), *quality])
    return table(["", "s a step", "EM", "F1"], rows)


def roofline(step: dict[str, Any]) -> str:
    """FLOPs, rate and share of each shape."""
    rows = [
        [shape, m["precision"], m["roofline"]["flops"] / 1e9, m["roofline"]["matmul_flops_per_second"] / 1e9]
        + [f"{m['roofline']['share']:.0%}"]
        for shape, m in step["shapes"].items()
    ]
    return table(["fine-tuning step", "", "GFLOP", "matmul GFLOP/s", "share of it"], rows)


def profile(step: dict[str, Any]) -> str:
    """The operators of a step with ITRD and cached teacher outputs."""
    shapes = step["shapes"]
    columns = [c for shape in shapes for c in (f"{shape}: operator", "own time")]
    places = range(min(len(m["profile"]) for m in shapes.values()))
    rows = [
        [c for m in shapes.values() for c in (f"`{m['profile'][i][0]}`", f"{m['profile'][i][1]:.1%}")] for i in places
    ]
    return table(columns, rows)


def end_to_end(record: dict[str, Any]) -> str:
    """The sides of the race."""
    titles = {
        "ours": f"ITRD + KD, every token, cached outputs ({'bf16' if record['bf16'] else 'fp32'})",
        "ours_fp32": "the same in fp32",
        "textbrewer": "TextBrewer: its loop and losses, padded (fp32)",
        "padded_finetune": "fine-tuning on gold labels, Trainer's defaults, padded (fp32)",
    }
    rows = []
    for name in [name for name in titles if name in record["sides"]]:
        side = record["sides"][name]
        std = side["std"]
        quality = [
            f"{side[key]:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")
            for key, deviation in zip(("em", "f1"), std, strict=True)
        ]
        rows.append([titles[name], spread(side["seconds"]), spread(side["over_ours"]), *quality])
    return table(["", "seconds", "over ours", "EM", "F1"], rows)


def evaluated(record: dict[str, Any]) -> str:
    """The two ways to evaluate."""
    names = {
        "ours": f"ours ({'bf16' if 'ours_fp32' in record['scores'] else 'fp32'})",
        "ours_fp32": "the same in fp32",
        "reference": "padded, nested loops (fp32)",
    }
    after = record["after_the_model"]
    rows = [
        [title, spread(record["seconds"][name]), spread(after[name])]
        + [f"{record['scores'][name][key]:.2f}" for key in ("exact_match", "f1")]
        for name, title in names.items()
        if name in record["scores"]
    ]
    return table(["", "seconds", "of them after the model", "EM", "F1"], rows)


def deployed(record: dict[str, Any] | None) -> str:
    """The section on the student as ONNX int8 against its teacher in PyTorch fp32; nothing before it was measured."""
    if record is None:
        return ""
    measured = record["measured"]
    made = benchmark_table(measured)
    names = [name for name in measured["metric_names"] if f"{name}_kept" in record]
    kept = " and ".join(f"{record[f'{name}_kept']:.1%} of its {metric_title(name)}" for name in names)
    faster = [
        f"{number(record[f'times_faster_{batch}x{length}'])} for {batch} x {length}"
        for length in measured["lengths"]
        for batch in measured["batches"]
    ]
    teacher, student = [
        next(row for row in measured["rows"] if (row["name"], row["form"]) == (name, "ONNX int8"))
        for name in ("teacher", "student")
    ]
    times = {
        f"{batch} x {length}": each["median"] / student["ms"][length][batch]["median"]
        for length, by_batch in teacher["ms"].items()
        for batch, each in by_batch.items()
    }
    alike = [f"{number(times_faster)} for {shape}" for shape, times_faster in times.items()]
    return (
        "## Deployed\n\nThe student as ONNX int8 against its teacher in PyTorch fp32 keeps "
        f"{kept}, is {number(record['times_smaller'])} times smaller on disk, and faster by these factors (texts x "
        f"tokens): {', '.join(faster)}. Part of this comes from the export: against the teacher as ONNX int8 too, the "
        f"student is {number(teacher['mib'] / student['mib'])} times smaller and faster by {', '.join(alike)}"
        f" (`scripts/bench/deploy.py`; {origin(record)}). {made.markdown()}\n\n"
    )


LOOPS = {
    "usual loop, fp32": "images one by one through PIL in two workers, a plain loop (fp32)",
    "ours, fp32": "ours in fp32",
    "ours": "ours{precision}",
}
IMAGES = (
    "## Images\n\nImages a second with ITRD's two losses and a live teacher, batches of 64 images of 32 x 32: through "
    "`ITRDTrainer`, and through a loop built like those of the papers. {batches} batches a turn, n = {repeats} "
    "(`scripts/bench/images.py`; {origin}):"
)
IMAGE_STEPS = "A step of each method{precision}. CRD and WCoRD hold a memory bank of 50,000 images, CIFAR's size:"


def images(record: dict[str, Any] | None) -> str:
    """The section on images: our loop beside the usual one, and each method's step; nothing before it was measured."""
    if record is None:
        return ""
    parts, bf16 = [], record["bf16"]
    for pair, loops in record["throughput"].items():
        rows = [
            [
                title.format(precision=" (bf16)" if bf16 else " (fp32)"),
                spread(loops[name]["images_per_second"]),
                spread(loops[name]["over_usual"]),
            ]
            for name, title in LOOPS.items()
        ]
        parts.append(f"`{pair}`:\n\n{table(['', 'images a second', 'times the usual loop'], rows)}")
    parts.append(IMAGE_STEPS.format(precision=" in bf16" if bf16 else ""))
    columns = ["step", "ms", "over training alone", "losses alone, ms", "losses keep, MiB", "parameters beside"]
    for pair, measured in record["steps"].items():
        rows = []
        for name, step in measured.items():
            alone = step["losses_seconds"]
            losses = [spread(alone, 1e3), f"{step['losses_mib']:.2f}"] if alone else ["", ""]
            row = [name, spread(step["seconds"], 1e3), spread(step["over_alone"]), *losses]
            rows.append([*row, f"{step['parameters']:,}", f"{step['peak_mib']:.0f}"])
        parts.append(f"`{pair}`:\n\n{table([*columns, 'peak, MiB'], rows)}")
    repeats, batches = [record["options"][name] for name in ("repeats", "batches")]
    head = IMAGES.format(origin=origin(record), repeats=repeats, batches=batches)
    return "\n\n".join([head, *parts]) + "\n\n"


def growth(record: dict[str, Any]) -> str:
    """The sweeps with their exponents."""
    rows = []
    for name, sweep in record["sweeps"].items():
        if name == "ranks":
            continue
        sizes, seconds = sweep["sizes"], [s["median"] * 1e3 for s in sweep["seconds"]]
        row = [name, f"{sizes[0]:,} → {sizes[-1]:,}", f"{number(seconds[0])} → {number(seconds[-1])}"]
        rows.append([*row, f"{sweep['exponent']:.2f}", f"{sweep['exponent_of_the_larger_half']:.2f}"])
    return table(["against", "sizes", "ms", "exponent", "of the larger half"], rows)


def plan(step: dict[str, Any], scaling: dict[str, Any], length: float) -> dict[str, Any]:
    """Eight GPUs on SQuAD, and on a hundred million texts."""
    setting, shape = step["setting"], step["shapes"]["bert-base"]
    tokens = setting["batch"] * setting["lengths"][1]
    unit = shape["roofline"]["flops"] / (3 * setting["layers"] * tokens)  # forward of a layer, for a token
    rate = GPUS * GPU_FLOPS * GPU_SHARE * GPU_SCALING
    rows = []
    for layers in (6, 3):
        student = 3 * layers * unit * SQUAD_WINDOWS * length * SQUAD_EPOCHS
        once, each = [12 * unit * SQUAD_WINDOWS * length * times for times in (1, SQUAD_EPOCHS)]
        pooled, sampled, every = [
            SQUAD_WINDOWS * (layers * WIDTH * n + 2 * length) * 2 / 2**30 for n in (1, 32, length)
        ]
        took = [f"{(student + teacher) / rate:.0f}" for teacher in (0, once, each)]
        rows.append([f"SQuAD, {layers} layers", *took, *(f"{gib:.1f}" for gib in (pooled, sampled, every))])
    squad = table(["", "fine-tuning, s", "stored, s", "live, s", "mean, GiB", "tokens:32, GiB", "tokens, GiB"], rows)
    layers = 6
    student, teacher = [TEXTS * TEXT_TOKENS * unit * cost for cost in (3 * layers, 12)]
    examples = TEXTS * rate / student
    rows = []
    for pooling, samples in (("mean", 1), ("tokens:32", 32), ("tokens", TEXT_TOKENS)):
        size = layers * WIDTH * samples * 2
        rows.append([pooling, f"{size / 2**10:.0f}", f"{TEXTS * size / 2**40:.1f}", f"{examples * size / 2**30:.2f}"])
    texts = table(["pooling", "KiB a text", "TiB in all", "GiB/s read by 8 GPUs"], rows)
    reading = scaling["sweeps"]["cache, reading"]["seconds"][-1]["median"]
    measured = 2048 * 3 * WIDTH * 2 / reading / 2**30
    hours = [f"{flops / rate / 3600:.1f}" for flops in (teacher, student)]
    return {
        "gpu": f"{GPU_FLOPS / 1e12:.0f}",
        "share": f"{GPU_SHARE:.0%}",
        "gpus": GPUS,
        "efficiency": f"{GPU_SCALING:.0%}",
        "unit": f"{unit / 1e6:.1f}",
        "length": f"{length:.0f}",
        "windows": f"{SQUAD_WINDOWS:,}",
        "squad_epochs": SQUAD_EPOCHS,
        "squad_plan": squad,
        "texts": f"{TEXTS:,}",
        "text_tokens": TEXT_TOKENS,
        "teacher_hours": hours[0],
        "student_hours": hours[1],
        "texts_plan": texts,
        "read_rate": f"{measured:.1f}",
    }


def page(
    step: dict[str, Any],
    end: dict[str, Any],
    evaluation: dict[str, Any],
    scaling: dict[str, Any],
    padding: dict[str, Any],
    estimate: dict[str, Any],
    brewer: dict[str, Any],
    alignment: dict[str, Any],
    deploy: dict[str, Any] | None,
    vision: dict[str, Any] | None,
) -> str:
    """The whole page."""
    asked, ranks = end["options"], scaling["sweeps"]["ranks"]
    parts = {
        "targets": targets(step, end, evaluation, alignment),
        "step_origin": origin(step),
        "steps": "\n\n".join(steps(shape, m, step["setting"]) for shape, m in step["shapes"].items()),
        "alignment_origin": origin(alignment),
        "alignment_setting": aligned_setting(alignment),
        "aligned": aligned(alignment),
        "methods": methods(step["shapes"]["bert-base"]),
        "parity": parity(brewer),
        "parity_origin": origin(brewer),
        "parity_worst": f"{brewer['losses_differ_by']:.1e}",
        "parity_batches": brewer["options"]["batches"],
        "parity_file": brewer["options"]["train_file"],
        "parity_questions": brewer["options"]["questions"],
        "parity_epochs": brewer["options"]["epochs"],
        "bank_examples": f"{step['setting']['examples']:,}",
        "roofline": roofline(step),
        "profile": profile(step),
        "questions": f"{asked['questions']:,}",
        **{key: asked[key] for key in ("train_file", "validation_file", "epochs", "layers")},
        "seeds": ", ".join(map(str, asked["seeds"])),
        "end_origin": origin(end),
        "end_to_end": end_to_end(end),
        "padded_file": padding["options"]["train_file"],
        "padded_windows": f"{padding['windows']:,}",
        **{f"padded_{name}": f"{padding[name]:.1%}" for name in ("full", "random", "grouped", "tokens")},
        "evaluation_origin": origin(evaluation),
        "evaluation": evaluated(evaluation),
        "deployed": deployed(deploy),
        "images": images(vision),
        "scaling_origin": origin(scaling),
        "growth": growth(scaling),
        "rank_texts": ranks["texts"],
        "cores": ranks["cores"],
        "one_rank": f"{ranks['seconds'][0] * 1e3:.0f}",
        "two_ranks": f"{ranks['seconds'][1] * 1e3:.0f}",
        "estimate_share": f"{estimate['share_of_product']:.0%}",
        "estimate_origin": origin(estimate),
        **plan(step, scaling, padding["mean_tokens"]),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only fail where one of them is stale")
    check = parser.parse_args().check
    names = (
        "step_cost",
        "end_to_end",
        "evaluation",
        "scaling",
        "padding",
        "estimate",
        "textbrewer_parity",
        "alignment",
    )
    records = [json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    later = [RECORDS / f"{name}.json" for name in ("deploy", "images")]  # which not everybody can measure
    records += [json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None for path in later]
    results = RESULTS.read_text(encoding="utf-8")
    made = {
        PAGE: page(*records),
        RESULTS: with_section(results, end_to_end(records[1]), RESULTS.name, "performance"),
    }
    for path, text in made.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.name} is stale: run python scripts/bench/page.py")


if __name__ == "__main__":
    main()
