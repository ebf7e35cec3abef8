"""What a search leaves: its record, a table, a plot, and a note for the model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from itrd_nlp.experiments.plots import need_matplotlib, svg
from itrd_nlp.experiments.shrink.deployment import LENGTH, Cost
from itrd_nlp.experiments.shrink.search import Goal
from itrd_nlp.utils.tables import Table, metric_title


def search_table(record: Mapping[str, Any]) -> Table:
    """The teacher and every student, from large to small: cost, score, and why it was trained no further."""
    metric = metric_title(record["metric"])
    columns = ["", "parameters", "MiB", "ms", "speedup", f"{metric}, short training", f"{metric}, int8", "kept", ""]
    teacher = record["teacher"]
    cells = _cost_cells("teacher", {**teacher, "speedup": 1.0})
    rows = [[*cells, "", f"{teacher['score']:.2f}", "", "PyTorch"]]
    if int8 := teacher.get("int8"):
        rows.append([*_cost_cells("teacher", int8), "", *_kept(int8), "ONNX int8, without a student"])
    for row in sorted(record["candidates"], key=lambda row: -row["mib"]):
        early = "" if row["early"] is None else f"{row['early']:.2f}"
        cells = _cost_cells(row["name"], row)
        form = "; in fp32, as int8 loses too much" if row.get("form") == "fp32" else ""
        rows.append([*cells, early, *_kept(row), f"{row['note']}{form}"])
        if row["name"] == record["chosen"]:
            share = 100 * _baseline_share(record)
            is_trained = record.get("baseline_trained", True)
            how = "on labels alone" if is_trained else "as it starts: training examples lack labels"
            scores = ["", f"{record['baseline']:.2f}", f"{share:.1f} %", f"the chosen one {how}, in PyTorch"]
            rows.append([f"{row['name']} without distillation", *cells[1:5], *scores])
    return Table(_caption(record), columns, rows)


def _cost_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """What a model is called and costs."""
    return [name, f"{row['parameters']:,}", f"{row['mib']:.1f}", f"{row['ms']:.1f}", f"{row['speedup']:.1f}"]


def _kept(row: Mapping[str, Any]) -> list[str]:
    """The score of a student that was trained to the end, and its share of the teacher's."""
    if row["score"] is None:
        return ["", ""]
    low = "" if row["kept_low"] is None else f" [{100 * row['kept_low']:.1f}, ...]"
    return [f"{row['score']:.2f}", f"{100 * row['kept']:.1f} %{low}"]


def _caption(record: Mapping[str, Any]) -> str:
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    latency = f"ms and speedup: one text of {_tokens(record)} tokens, {threads}, "
    latency += "the teacher in PyTorch fp32, students in ONNX int8"
    return (
        f"`{record['teacher']['model']}` made smaller ({record['examples']:,} validation examples; seed "
        f"{record['seed']}; {latency}; MiB: all files that are needed to run, of the teacher in PyTorch "
        f"its weights alone; in brackets the lower end of the 95 % interval over examples; {record['device']}):"
    )


def verdict(record: Mapping[str, Any]) -> str:
    """What was chosen and why, in a sentence or two."""
    row = next(row for row in record["candidates"] if row["name"] == record["chosen"])
    goal = f"{100 * record['goal']['keep']:g} % of the teacher's {metric_title(record['metric'])}"
    for name, text in (("max_mib", "at most {:g} MiB"), ("min_speedup", "{:g} times the speed")):
        if record["goal"][name] is not None:
            goal += f", {text.format(record['goal'][name])}"
    result = f"it keeps {_share(row)} in {row['mib']:.1f} MiB, {row['speedup']:.1f} times as fast"
    if record["met"]:
        text = f"{row['name']} is the smallest student tried that meets the goal ({goal}): {result}."
    else:
        text = f"No student tried meets the goal ({goal}). The nearest is {row['name']}: {result}."
    int8 = record["teacher"].get("int8")
    if int8 and int8["kept"] >= record["goal"]["keep"] and Goal(**record["goal"]).fits(int8["mib"], int8["speedup"]):
        meets = "meets this too" if record["met"] else "meets it"
        text += f" The teacher itself, in int8, {meets}: {_share(int8)} in {int8['mib']:.1f} MiB."
    text += "".join(f" {caution}" for caution in _cautions(record, row))
    if (test := record["test"]) is None:
        return f"{text} {row['name']} was chosen and scored on the same file: expect somewhat less on other data."
    return f"{text} On the test file, scored once, {row['name']} keeps {_share(test)}."


def _cautions(record: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    """What else to know before the chosen student, in ``row``, is deployed."""
    if row["kept"] > 1.05:
        yield "A student this far above its teacher suggests that the teacher was trained too little."
    if record["met"] and row["kept_low"] is not None and row["kept_low"] < record["goal"]["keep"]:
        yield "Its interval reaches below the goal: on other examples it may miss it."
    if record["met"] and row["mib"] <= min(each["mib"] for each in record["candidates"]):
        yield "No smaller student was tried: name sizes with --layers, --hidden_sizes and --vocabularies."
    if record.get("baseline_trained", True) and (share := _baseline_share(record)) >= row["kept"]:
        yield (
            f"Trained on labels alone it keeps {100 * share:.1f} % in PyTorch, so distillation gained nothing here: "
            f"export that one too, the baseline in runs/{row['name']}/whole/models.json."
        )


def _baseline_share(record: Mapping[str, Any]) -> float:
    """The share of the teacher's score that the chosen student keeps without distillation."""
    return record["baseline"] / record.get("baseline_teacher", record["teacher"]["score"])


def _share(row: Mapping[str, Any]) -> str:
    if row["kept"] is None:
        return f"{row['score']:.2f}, where its teacher has none,"
    low = "" if row["kept_low"] is None else f" (95 % interval from {100 * row['kept_low']:.1f} % up)"
    return f"{100 * row['kept']:.1f} %{low}"


def _tokens(record: Mapping[str, Any]) -> int:
    return record["candidates"][0].get("tokens", LENGTH)  # earlier versions did not say


def plot(record: Mapping[str, Any]) -> str:
    """An SVG: the score of every student against its size and against its latency; the chosen one is marked."""
    metric = metric_title(record["metric"])
    figure = need_matplotlib()(figsize=(9, 4.2), layout="constrained")
    costs = {"mib": "MiB of all files", "ms": f"ms, one text of {_tokens(record)} tokens"}
    for axis, (cost, label) in zip(figure.subplots(1, 2, sharey=True), costs.items(), strict=True):
        axis.set(xlabel=label, ylabel=metric)
        for row in record["candidates"]:
            complete = row["score"] is not None
            score = row["score"] if complete else row["early"]
            if score is None:
                continue
            chosen = row["name"] == record["chosen"]
            fill = "C0" if complete else "none"
            axis.plot(row[cost], score, "*" if chosen else "o", color="C0", mfc=fill, ms=14 if chosen else 6)
            axis.annotate(row["name"], (row[cost], score), (5, 5), textcoords="offset points", fontsize=8)
        axis.axhline(record["goal"]["keep"] * record["teacher"]["score"], color="black", linewidth=0.8, linestyle="--")
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    figure.suptitle(
        "filled: trained to the end, int8; star: chosen; hollow: after the short training; dashed: asked", fontsize=9
    )
    return svg(figure)


def why_no_student(goal: Goal, costs: Mapping[str, Cost]) -> str:
    """Why no student is within the limits."""
    limits = [f"--{name} {value:g}" for name, value in goal._asdict().items() if name != "keep" and value is not None]
    smallest = min(costs, key=lambda name: costs[name].mib)
    fastest = max(costs, key=lambda name: costs[name].speedup)
    return (
        f"{' '.join(limits)}: no candidate is within the limits: the smallest, {smallest}, takes "
        f"{costs[smallest].mib:.1f} MiB, the fastest, {fastest}, is {costs[fastest].speedup:.1f} times as fast; "
        "expected limits that one of them meets, or other sizes (--layers, --hidden_sizes, --vocabularies)"
    )
