"""What reproduce_squad.sh takes: hours on several devices and bytes on disk, from counted FLOPs.

    python scripts/estimate.py [--check]

FLOPs are counted on models without weights (torch.utils.flop_counter on the meta device): a step of each student, and
the teacher's pass over the data, once for each set of answers that can be stored and at each epoch where it cannot.
Losses are left out: they are percents of a step (docs/performance.md). `--check` times a step here and compares it with
its FLOPs at the best rate of a matrix product.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForQuestionAnswering

from itrd_nlp.distillation.layers import layer_pairs
from itrd_nlp.distillation.teacher_outputs import AUTO_LIMIT
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.losses import LOSSES
from itrd_nlp.utils.environment import computes_bf16, provenance
from itrd_nlp.utils.io import write_json

WINDOWS, TOKENS = 88_524, 175  # SQuAD v1.1 at 384 tokens: training windows, and their mean length
TEACHER_LAYERS, WIDTH = 12, 768
RECORD = Path(__file__).parent / "results" / "bench" / "estimate.json"
DEVICES = {"A100": 312e12, "H100": 989e12, "RTX 4090": 165e12, "V100 (fp16)": 125e12}  # dense peaks, bf16 unless said
SHARE = 0.35  # of the peak that training reaches


def bert(layers: int, device: str = "meta") -> BertForQuestionAnswering:
    """BERT-base of so many layers, with random weights or none."""
    with torch.device(device):
        config = BertConfig(num_hidden_layers=layers, attn_implementation="eager", attention_probs_dropout_prob=0.0)
        return BertForQuestionAnswering(config)


def flops(layers: int, batch: int, train: bool, length: int = TOKENS) -> float:
    """FLOPs of one batch: forward, and backward where it is trained."""
    model, ids = bert(layers), torch.zeros(batch, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        outputs = model(ids)
        if train:
            (outputs.start_logits.sum() + outputs.end_logits.sum()).backward()
    return counter.get_total_flops()


def answers(recipe: str, layers: int) -> tuple[str, float]:
    """What names the cached teacher outputs that a recipe reads, and their bytes."""
    _, arguments = parse(recipe)
    names = {*arguments.losses}
    features, attention = [
        any(getattr(LOSSES[n], f"reads_{what}") for n in names) for what in ("features", "attention")
    ]
    tapped = [t for t, _ in layer_pairs(arguments.layer_map, TEACHER_LAYERS, layers)] if features or attention else []
    kind, _, count = arguments.pooling.partition(":")
    samples = 1 if kind in ("mean", "cls") else min(int(count or TOKENS), TOKENS)
    a_layer = features * samples * WIDTH + attention * 3 * TOKENS * WIDTH
    key = [tapped, arguments.pooling if features else "", attention, "kd" in names]
    return json.dumps(key), 2.0 * WINDOWS * (2 * TOKENS * ("kd" in names) + len(tapped) * a_layer)


def check() -> float:
    """A step's measured time over that of its FLOPs at the rate of the layers' matrix products on this machine."""
    model, length, batch = bert(3, "cpu").train(), 160, 16
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(1000, 30000, (batch, length))
    dtype = torch.bfloat16 if computes_bf16(True) else torch.float32
    a, b = torch.randn(batch * length, WIDTH, dtype=dtype), torch.randn(4 * WIDTH, WIDTH, dtype=dtype)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = model(ids)
            loss = outputs.start_logits.float().logsumexp(-1).mean() + outputs.end_logits.float().logsumexp(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {"step": [], "product": []}
    for _ in range(15):
        for name, call in (("step", step), ("product", lambda: torch.nn.functional.linear(a, b))):
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    measured, product = sorted(times["step"])[7], min(times["product"])
    rate = 2 * a.numel() * len(b) / product
    counted = flops(3, batch, True, length)
    print(
        f"a step of 3 layers here: {measured:.2f} s; its {counted / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s: "
        f"{counted / rate:.2f} s; share reached {counted / rate / measured:.0%}"
    )
    return counted / rate / measured


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--students", nargs="+", default=["t6", "t3"])
    parser.add_argument("--methods", nargs="+", default=["kd", "itrd"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="time a step here instead, and compare it with its FLOPs")
    parser.add_argument("--record", action="store_true", help="with --check: keep the ratio in results/bench")
    options = parser.parse_args()
    if options.check:
        share = check()
        if options.record:
            write_json(RECORD, {"share_of_product": share, **provenance(torch.device("cpu"))})
        return
    batch = 32
    steps = WINDOWS / batch
    asking = steps * flops(TEACHER_LAYERS, batch, False)
    total = 3 * steps * flops(TEACHER_LAYERS, batch, True)  # the teacher's own training
    stored: dict[str, float] = {}
    kept = 0
    for student in options.students:
        layers = int(student.removeprefix("t"))
        epochs_of = {m: parse(f"squad/{student}-{m}")[1].num_train_epochs for m in options.methods}
        all_epochs = sum(epochs_of.values()) + max(epochs_of.values())  # and those of the undistilled student
        total += options.seeds * all_epochs * steps * flops(layers, batch, True)
        runs = (len(options.methods) + 1) * options.seeds
        kept += runs * 4 * 7 * bert(layers).num_parameters()  # fp32: student, two checkpoints with Adam's two moments
        for method, epochs in epochs_of.items():
            name, size = answers(f"squad/{student}-{method}", layers)
            if size > AUTO_LIMIT:  # the teacher is asked about every batch
                total += options.seeds * epochs * asking
            else:
                stored[name] = size
    total += len(stored) * asking
    print(f"{total / 1e18:.1f} EFLOP; hours at {SHARE:.0%} of the peak:")
    for name, peak in DEVICES.items():
        print(f"  {name:12} {total / (SHARE * peak) / 3600:6.1f} h")
    print(
        f"disk: {len(stored)} sets of the teacher's answers, {sum(stored.values()) / 2**30:.1f} GiB; students and two "
        f"checkpoints of each, {kept / 2**30:.0f} GiB. Sets above {AUTO_LIMIT / 2**30:.0f} GiB are asked for live: "
        "--teacher_cache FOLDER stores them, where a disk is fast and large"
    )


if __name__ == "__main__":
    main()
