"""Which nodes are quantised, and which are left out so that a score is kept."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

from transformers import BertForSequenceClassification  # noqa: E402

import tiny  # noqa: E402
from cli.test_main import refused  # noqa: E402
from itrd_nlp.cli.main import main  # noqa: E402
from itrd_nlp.export.comparison import difference  # noqa: E402
from itrd_nlp.export.folder import deployed_mib  # noqa: E402
from itrd_nlp.export.onnx import write_model  # noqa: E402
from itrd_nlp.export.quantization import (  # noqa: E402
    node_errors,
    quantise,
    quantise_within,
    quantised_nodes,
    verdict,
)
from itrd_nlp.models.onnx_model import FILES, OnnxModel  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer):
    """A classifier's folder, its exported one in fp32 and int8, a batch, and the nodes that were quantised."""
    place = tmp_path_factory.mktemp("quantisation")
    torch.manual_seed(0)
    config = tiny.config(
        layers=1, vocab_size=len(tokenizer), id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():  # one column of one matrix that dwarfs the others: its inputs are hard to quantise
        model.bert.encoder.layer[0].intermediate.dense.weight[0] *= 100
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    batch = dict(tokenizer(["the king", "the house of the city"], padding=True, return_tensors="pt"))
    write_model(model, batch, place / "onnx")
    quantise(place / "onnx")
    return place / "model", place / "onnx", batch, quantised_nodes(place / "onnx")


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported folder."""
    return shutil.copytree(exported[1], tmp_path / "copy")


def test_classes_are_compared_also_where_there_are_as_many_as_tokens(exported):
    source, folder, batch, names = exported
    model = BertForSequenceClassification.from_pretrained(source).eval()
    two = {name: values[:, :2].clone() for name, values in batch.items()}
    two["attention_mask"][:, 1] = 0

    def forward(**inputs):
        outputs = model(**inputs)
        outputs.logits[:, 1] += 100
        return outputs

    assert difference(forward, folder / FILES["fp32"], [two])["max_difference"] == pytest.approx(100, abs=0.01)
    assert OnnxModel(folder / FILES["fp32"]).token_outputs == set()


def operators(path):
    return {node.name: node.op_type for node in onnx.load(path).graph.node}


def test_all_nodes_with_weights_are_quantised_unless_named(exported, folder):
    *_, names = exported
    before, after = operators(folder / FILES["fp32"]), operators(folder / FILES["int8"])
    # three tables, six matrices of the layer, pooler and head, whose Gemms become MatMul; not products of activations
    tables, matrices = [n for n in names if before.get(n) == "Gather"], [n for n in names if before.get(n) != "Gather"]
    assert len(tables) == 3 and len(matrices) == 8 and sum(name.endswith("_MatMul") for name in matrices) == 2
    assert all(after.get(f"{name}_quant") == "MatMulInteger" for name in matrices)
    assert list(after.values()).count("MatMul") == list(before.values()).count("MatMul") - 6 == 2
    quantise(folder, [*tables[:1], *matrices[-5:]])
    kept = operators(folder / FILES["int8"])
    assert [name for name in matrices if kept.get(name) == "MatMul"] == matrices[-5:]
    assert quantised_nodes(folder) == [*tables[1:], *matrices[:-5]]


def test_the_error_of_a_node_is_that_of_a_file_in_which_it_alone_is_quantised(exported, folder):
    _, _, batch, names = exported
    errors = node_errors(folder, names, batch)
    assert not (folder / "probe.onnx").exists() and set(errors) == {*names}
    expected = OnnxModel(folder)(**batch)["logits"].double()
    for name in (names[0], names[-1], max(errors, key=errors.get)):
        quantise(folder, [other for other in names if other != name])
        alone = OnnxModel(folder / FILES["int8"])(**batch)["logits"].double()
        assert errors[name] == pytest.approx((torch.norm(alone - expected) / torch.norm(expected)).item(), rel=1e-3)


def test_the_worst_nodes_are_left_out_until_the_drop_is_allowed(exported, folder, caplog):
    _, _, batch, names = exported
    left = []

    def score():
        left.append([name for name in names if name not in quantised_nodes(folder)])
        return {"accuracy": 90 - 4 / (1 + len(left[-1]))}  # 4, 2, 1.33, 0.8 less

    caplog.set_level("INFO")
    result = quantise_within(folder, batch, score, {"accuracy": 90.0}, "accuracy", 1.0)
    errors = node_errors(folder, names, batch)
    worst = sorted(names, key=lambda name: -errors[name])
    assert [len(each) for each in left] == [0, 1, 2, 4] == [each["fp32_nodes"] for each in result["tries"]]
    assert all({*each} == {*worst[: len(each)]} for each in left)
    assert result["fp32_nodes"] == worst[:4] and result["kept"] == "int8" and result["nodes"] == 11
    assert result["tries"][-1]["mib"] == (folder / FILES["int8"]).stat().st_size / 2**20
    assert verdict(result) == (
        "int8 loses 4.00 points of accuracy with all 11 nodes quantised, 0.80 with the worst 4 in fp32 (1 allowed): "
        "these stay in fp32."
    )
    lines = [message for message in caplog.messages if message.startswith("[quantise]")]
    assert "0 of 11 nodes in fp32: accuracy 86.00, fp32 has 90.00 (1 less allowed)" in lines[0]
    assert "at most 4 more scorings" in lines[1] and len(lines) == 5


def test_without_a_loss_nothing_is_left_out_and_with_too_much_there_is_no_int8(exported, folder):
    batch = exported[2]
    better = quantise_within(folder, batch, lambda: {"f1": 70.1}, {"f1": 70.0}, "f1", 0.0)
    assert better["fp32_nodes"] == [] and better["tries"][0]["drop"] == -0.1
    assert verdict(better) == "int8 gains 0.10 points of F1 (0 allowed): all 11 nodes are quantised."
    exact = quantise_within(folder, batch, lambda: {"f1": 69.7}, {"f1": 70.0}, "f1", 0.3)  # 0.29999999999999716
    assert exact["kept"] == "int8" and (folder / FILES["int8"]).is_file()
    enough = quantise_within(folder, batch, lambda: {"f1": 68.0}, {"f1": 70.0}, "f1", 0.5, enough=67.9)
    assert enough["fp32_nodes"] == [] and len(enough["tries"]) == 1
    assert verdict(enough) == "int8 loses 2.00 points of F1 (67.90 is enough): all 11 nodes are quantised."
    scorings = []
    worse = quantise_within(folder, batch, lambda: scorings.append(1) or {"f1": 60.0}, {"f1": 70.0}, "f1", 5.0)
    assert len(scorings) == 5 and worse["kept"] == "fp32" and not (folder / FILES["int8"]).exists()
    assert verdict(worse).endswith("10.00 with the worst 8 in fp32 (5 allowed): there is no int8 model, fp32 is kept.")


@pytest.mark.parametrize("drop, kept", [(100, "int8"), (0, "fp32")])
def test_the_command_says_what_was_taken(exported, tmp_path, capsys, monkeypatch, drop, kept):
    """With a scorer that lets int8 lose a point, however many nodes are left out."""
    model, written, *_ = exported
    (tmp_path / "held.csv").write_text("text,label\nthe king,yes\nthe house of the city,no\nwho is in the city,yes\n")
    from itrd_nlp.experiments import evaluation

    def scorer(*given):
        return lambda model: {name: 90.0 - str(model.name_or_path).endswith("quantized.onnx") for name in NAMES}

    monkeypatch.setattr(evaluation, "scorer", scorer)
    monkeypatch.setattr("itrd_nlp.export.export.write_model", lambda *given: shutil.copytree(written, given[-1]))
    words = ["--validation_file", str(tmp_path / "held.csv"), "--max_length", "32", "--max_drop", str(drop)]
    capsys.readouterr()
    assert main(["export", str(model), "--output", str(tmp_path / "onnx"), *words]) == 0
    record = json.loads((tmp_path / "onnx" / "export.json").read_text())
    result, out = record["quantisation"], capsys.readouterr().out
    assert result["kept"] == kept and result["metric"] == "accuracy" and result["tries"][0]["drop"] == 1
    assert verdict(result) in out and verdict(result) in (tmp_path / "onnx" / "README.md").read_text()
    files = {path.name for path in (tmp_path / "onnx" / "onnx").iterdir()}
    assert files == ({"model.onnx", "model_quantized.onnx"} if kept == "int8" else {"model.onnx"})
    assert ("ONNX int8" in record["rows"]) == ("| ONNX int8 |" in out) == (kept == "int8")


NAMES = ("matthews", "macro_f1", "f1", "accuracy")


def test_wrong_drops_are_one_line_before_anything_is_written(exported, capsys, tmp_path):
    model = str(exported[0])
    output = ["--output", str(tmp_path / "onnx")]
    assert "without validation data" in refused(capsys, "export", model, *output, "--max_drop", "0.5")
    assert "--max_drop -1: expected 0 or more" in refused(capsys, "export", model, *output, "--max_drop", "-1")
    assert "--max_drop nan: expected 0 or more" in refused(capsys, "export", model, *output, "--max_drop", "nan")
    assert "there is no int8 model" in refused(capsys, "export", model, *output, "--max_drop", "1", "--no_int8")
    assert not list(tmp_path.iterdir())


def test_a_model_too_large_for_the_probe_is_refused(exported, folder, monkeypatch):
    monkeypatch.setattr("itrd_nlp.export.quantization.LARGEST", 1000)
    with pytest.raises(UserError, match="max_drop: fp32 and int8 take 0.0 GiB"):
        node_errors(folder, exported[3], exported[2])


def test_the_size_of_a_deployment_counts_all_files_it_needs(exported, folder, tokenizer):
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("not needed" * 1000)
    (folder / "run.py").write_text("not needed" * 1000)
    for form in FILES:
        files = [FILES[form], "config.json", "tokenizer.json", "tokenizer_config.json"]
        assert deployed_mib(folder, form) == pytest.approx(sum((folder / f).stat().st_size for f in files) / 2**20)
    (folder / FILES["int8"]).unlink()
    with pytest.raises(UserError, match="has no int8 model"):
        deployed_mib(folder, "int8")


def test_a_convolution_is_quantised_too(tmp_path):
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    sides = [("x", [1, 2, 5, 5]), ("y", [1, 3, 4, 4])]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in sides]
    weights = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)
    initial = [onnx.numpy_helper.from_array(weights, "w")]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], initial)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "onnx").mkdir()
    onnx.save(model, tmp_path / FILES["fp32"])
    quantise(tmp_path)
    assert quantised_nodes(tmp_path) == ["conv"]
    errors = node_errors(tmp_path, ["conv"], {"x": torch.randn(1, 2, 5, 5)})
    assert 0 < errors["conv"] < 0.1
