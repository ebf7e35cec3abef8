"""Dynamic int8 quantisation, and the search for the nodes that must stay in fp32 to keep a score."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from itrd_nlp.export.onnx import LARGEST, operators, quiet
from itrd_nlp.models.onnx_model import FILES, FUSIONS, token_outputs
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tables import metric_title

logger = logging.getLogger(__name__)

WEIGHTED = {"Conv": 1, "MatMul": 1, "Gather": 0}  # operators that are quantised -> the input that holds their weights
TWIN = "_int8"  # ends the names of a node's quantised copy


def quantise(folder: Path, fp32_nodes: Sequence[str] = ()) -> None:
    """Quantise an exported model dynamically: activations to eight bits when they are computed, weights to seven.

    With seven bits the products do not overflow on CPUs without VNNI. Matrices have a scale for each column.
    Convolutions have one scale and are unsigned: onnxruntime has no fast kernel for other forms.

    Args:
        folder: of :func:`itrd_nlp.export.onnx.write_model`; gets the int8 file.
        fp32_nodes: names of nodes to leave as they are.
    """
    _quantise(_load(folder), folder / FILES["int8"], nodes_to_exclude=list(fp32_nodes))


def _load(folder: Path, form: str = "fp32") -> Any:
    """One of the models of a folder, with MatMul and Add for each Gemm, as quantisation replaces them: nodes then keep
    their names."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(folder / FILES[form]))
    model.replace_gemm_with_matmul()
    return model.model


def _quantise(model: Any, target: Path, **nodes: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    count = operators(model)
    options: dict[str, Any] = {"weight_type": QuantType.QUInt8}
    if count["Conv"] <= count["MatMul"]:
        options = {"weight_type": QuantType.QInt8, "per_channel": True, "op_types_to_quantize": ["MatMul", "Gather"]}
    with quiet():
        quantize_dynamic(model, target, reduce_range=True, **options, **nodes)


def quantised_nodes(folder: Path) -> list[str]:
    """The names of the nodes whose weights :func:`quantise` changes."""
    import onnx

    weights: dict[str, list[set[str]]] = {}
    for form in FILES:
        graph = _load(folder, form).graph
        floats = {entry.name for entry in graph.initializer if entry.data_type == onnx.TensorProto.FLOAT}
        for node in graph.node:
            if node.op_type in WEIGHTED:
                weights.setdefault(node.name, []).append(floats & {node.input[WEIGHTED[node.op_type]]})
    return [name for name, (before, *after) in weights.items() if before and not any(after)]


def node_errors(folder: Path, names: Sequence[str], batch: Mapping[str, Tensor]) -> dict[str, float]:
    """How much each node changes a model's outputs when it alone is quantised.

    One file holds each node in both forms and an input for each that chooses, so that it is quantised and loaded once.

    Args:
        folder: of the exported model.
        names: of nodes, see :func:`quantised_nodes`.
        batch: examples of the task.

    Returns:
        name -> root of the squared change over the squared outputs, padding left out.

    Raises:
        UserError: a model whose two forms exceed an ONNX file.
    """
    import onnxruntime

    size = sum((folder / file).stat().st_size for file in FILES.values())
    if size > LARGEST:
        raise UserError(
            f"max_drop: fp32 and int8 take {size / 2**30:.1f} GiB, the ONNX file that compares them holds 2; leave "
            "max_drop out, or distil into a smaller model"
        )
    path = folder / "probe.onnx"
    _quantise(_with_twins(_load(folder), names), path, nodes_to_quantize=[f"{name}{TWIN}" for name in names])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"], **FUSIONS)
    path.unlink()
    accepted = {entry.name for entry in session.get_inputs()}
    feed = {name: values.numpy() for name, values in batch.items() if name in accepted}
    of_tokens = token_outputs(session) if "attention_mask" in batch else set()

    def outputs(quantised: str | None) -> np.ndarray:
        choices = {f"{name}{TWIN}": np.array(name == quantised) for name in names}
        arrays = session.run(None, {**feed, **choices})
        for entry, array in zip(session.get_outputs(), arrays, strict=True):
            if entry.name in of_tokens:
                array[batch["attention_mask"].numpy() == 0] = 0
        return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)

    expected = outputs(None)
    scale = np.linalg.norm(expected) or 1.0
    return {name: float(np.linalg.norm(outputs(name) - expected) / scale) for name in names}


def _with_twins(model: Any, names: Sequence[str]) -> Any:
    """Give each node of a model a copy, and the model a boolean input of the copy's name that chooses it."""
    import onnx

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in names:
            twin, output = onnx.NodeProto(), node.output[0]
            twin.CopyFrom(node)
            twin.name, twin.output[0], node.output[0] = f"{node.name}{TWIN}", f"{output}{TWIN}", f"{output}_fp32"
            inputs = [twin.name, twin.output[0], node.output[0]]
            nodes += [twin, onnx.helper.make_node("Where", inputs, [output], f"{node.name}_choice")]
            model.graph.input.append(onnx.helper.make_tensor_value_info(twin.name, onnx.TensorProto.BOOL, []))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def quantise_within(
    folder: Path,
    batch: Mapping[str, Tensor],
    score: Callable[[], Mapping[str, float]],
    expected: Mapping[str, float],
    metric: str,
    max_drop: float,
    enough: float | None = None,
) -> dict[str, Any]:
    """Quantise as many nodes as a score allows: leave out none, then the worst 1, 2, 4, ... by :func:`node_errors`.

    n nodes take at most 1 + log2 n scorings, rounded up. Where even the last one loses too much, no int8 file is left.

    Args:
        folder: of the exported model.
        batch: examples by which nodes are ranked.
        score: metrics of the int8 file that is there.
        expected: those of the fp32 file.
        metric: the one of them that may drop, in points.
        max_drop: by how much.
        enough: a score from which on it may drop by more.

    Returns:
        ``metric``, ``max_drop``, ``enough``; ``nodes``, how many can be quantised; ``tries``, each with ``fp32_nodes``
        (a number), ``metrics``, ``drop`` and ``mib``; ``fp32_nodes``, the names of those left out; and ``kept``, int8
        or fp32.
    """
    file = folder / FILES["int8"]
    ranked: list[str] = []
    tries: list[dict[str, Any]] = []
    quantise(folder)
    names = quantised_nodes(folder)
    result = {"metric": metric, "max_drop": max_drop, "enough": enough, "nodes": len(names), "tries": tries}
    count = 0
    while True:
        metrics = dict(score())
        drop = round(expected[metric] - metrics[metric], 6)  # without the rounding error of percentages
        tries.append({"fp32_nodes": count, "metrics": metrics, "drop": drop, "mib": file.stat().st_size / 2**20})
        logger.info(
            f"[quantise] {count} of {len(names)} nodes in fp32: {metric} {metrics[metric]:.2f}, fp32 has "
            f"{expected[metric]:.2f} ({max_drop:g} less allowed)"
        )
        if drop <= max_drop or (enough is not None and metrics[metric] >= enough):
            return {**result, "fp32_nodes": ranked[:count], "kept": "int8"}
        count = max(1, 2 * count)
        if count >= len(names):
            file.unlink()
            return {**result, "fp32_nodes": names, "kept": "fp32"}
        if not ranked:
            most = (len(names) - 1).bit_length()
            logger.info(
                f"[quantise] ranking {len(names)} nodes by the error of each alone; at most {most} more scorings"
            )
            errors = node_errors(folder, names, batch)
            ranked = sorted(names, key=lambda name: -errors[name])
        quantise(folder, ranked[:count])


def verdict(result: Mapping[str, Any]) -> str:
    """What :func:`quantise_within` decided, in a sentence."""
    first, last = result["tries"][0], result["tries"][-1]
    points = f"points of {metric_title(result['metric'])}"
    allowed = f"{result['max_drop']:g} allowed"
    if result["kept"] == "int8" and last["drop"] > result["max_drop"]:
        allowed = f"{result['enough']:.2f} is enough"
    if last is first and result["kept"] == "int8":
        change = f"gains {-first['drop']:.2f}" if first["drop"] < 0 else f"loses {first['drop']:.2f}"
        return f"int8 {change} {points} ({allowed}): all {result['nodes']} nodes are quantised."
    loss = f"int8 loses {first['drop']:.2f} {points} with all {result['nodes']} nodes quantised"
    if last is not first:
        loss += f", {last['drop']:.2f} with the worst {last['fp32_nodes']} in fp32"
    outcome = "there is no int8 model, fp32 is kept" if result["kept"] == "fp32" else "these stay in fp32"
    return f"{loss} ({allowed}): {outcome}."
