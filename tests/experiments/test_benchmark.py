"""Models in their forms, measured in turns."""

import copy
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

from transformers import BertForQuestionAnswering, ModernBertConfig, ModernBertModel  # noqa: E402

import tiny  # noqa: E402
from cli.test_main import ROWS, refused  # noqa: E402
from distillation.test_alignment import tokenizer as trained  # noqa: E402
from itrd_nlp.cli.main import main  # noqa: E402
from itrd_nlp.experiments.benchmark import (  # noqa: E402
    _check_alike,
    _in_bf16,
    benchmark,
    by_short_name,
)
from itrd_nlp.experiments.benchmark_report import benchmark_table, write_plot  # noqa: E402
from itrd_nlp.experiments.evaluation import evaluation_task  # noqa: E402
from itrd_nlp.experiments.scoring import evaluate, evaluate_in_fp32  # noqa: E402
from itrd_nlp.export.export import export  # noqa: E402
from itrd_nlp.inference.saved_models import load_trained  # noqa: E402
from itrd_nlp.tasks.rows import Rows  # noqa: E402
from itrd_nlp.tasks.token_classification import TaggingTask  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.utils.io import read_json  # noqa: E402

FORMS = ["PyTorch fp32", "PyTorch bf16", "ONNX fp32", "ONNX int8"]


@pytest.fixture(scope="module")
def places(tmp_path_factory, tokenizer):
    """Folders of a student of one layer and a larger teacher, the teacher's export, and a file of questions."""
    place = tmp_path_factory.mktemp("benchmark")
    for name, layers, width in (("student", 1, 32), ("teacher", 2, 64)):
        torch.manual_seed(0)
        config = tiny.config(layers, width, vocab_size=len(tokenizer), max_position_embeddings=128)
        BertForQuestionAnswering(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    export(str(place / "teacher"), place / "teacher-onnx")
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return place


@pytest.fixture(scope="module")
def measured(places):
    """What the command wrote of the student and of the exported teacher."""
    words = ["benchmark", f"{places}/student", f"{places}/teacher-onnx", "--batches", "1", "4", "--repeats", "3"]
    words += ["--task", "squad", "--validation_file", f"{places}/data.jsonl", "--max_length", "64"]
    words += ["--disable_tqdm", "true", "--output", f"{places}/speed.json", "--plot", f"{places}/speed.html"]
    threads = torch.get_num_threads()
    assert main(words) == 0
    assert torch.get_num_threads() == threads
    return read_json(places / "speed.json")


def test_a_model_that_cannot_be_exported_is_measured_in_pytorch(places, monkeypatch, capsys):
    def cannot(*given):
        raise UserError("no ONNX for this one")

    monkeypatch.setattr("itrd_nlp.experiments.benchmark.write_model", cannot)
    record = benchmark({"student": f"{places}/student"}, lengths=[8], batches=[1], repeats=2)
    assert [row["form"] for row in record["rows"]] == FORMS[:2]
    assert "student in PyTorch alone: no ONNX for this one" in capsys.readouterr().err


def test_each_form_has_its_size_speed_and_scores(measured, places, capsys):
    rows = measured["rows"]
    assert [(row["name"], row["form"]) for row in rows] == [
        *(("student", form) for form in FORMS),
        ("teacher-onnx", "ONNX fp32"),
        ("teacher-onnx", "ONNX int8"),
    ]
    fp32, bf16 = rows[0], rows[1]
    count = sum(p.numel() for p in BertForQuestionAnswering.from_pretrained(places / "student").parameters())
    assert fp32["parameters"] == bf16["parameters"] == count and rows[-1]["parameters"] is None
    assert bf16["mib"] == pytest.approx(fp32["mib"] / 2, rel=0.05)
    assert rows[-1]["mib"] == (places / "teacher-onnx" / "onnx/model_quantized.onnx").stat().st_size / 2**20
    assert measured["lengths"] == [32, 128] and measured["batches"] == [1, 4]  # 384 is more than they take
    for row in rows:
        assert set(row["ms"]) == {"32", "128"} and all(set(times) == {"1", "4"} for times in row["ms"].values())
        assert all(
            t["n"] == 3 and t["median"] > 0 <= t["spread"] for times in row["ms"].values() for t in times.values()
        )
    words = ["--task", "squad", "--validation_file", f"{places}/data.jsonl", "--max_length", "64"]
    capsys.readouterr()
    assert main(["evaluate", f"{places}/student", *words, "--bf16", "false", "--disable_tqdm", "true"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :]) == fp32["metrics"] == rows[2]["metrics"]


def test_a_tagger_s_tokenizer_does_not_differ_from_itself(tmp_path):
    """Byte-level BPE, which the task lets put a blank before each word."""
    before, labels = trained("bytes"), SimpleNamespace(config=SimpleNamespace(num_labels=1, id2label={0: "O"}))
    before.save_pretrained(tmp_path)
    task = TaggingTask(before, Rows("a.jsonl", [[["the", "house"]]], [["O", "B-X"]]), None)
    _check_alike({"a": str(tmp_path)}, [({"name": "a"}, labels)], task)
    with pytest.raises(UserError, match="a and a differ in the pre-tokeniser"):
        _check_alike(
            {"a": str(tmp_path)}, [({"name": "a"}, labels)], SimpleNamespace(one_score=False, tokenizer=task.tokenizer)
        )


def test_on_another_device_pytorch_alone_is_measured(places, monkeypatch):
    seen = []

    def forward(self, **inputs):
        seen.append({self.device.type, *(x.device.type for x in inputs.values())})

    monkeypatch.setattr(BertForQuestionAnswering, "forward", forward)
    record = benchmark({"student": f"{places}/student"}, lengths=[32], batches=[2], repeats=2, device="meta")
    assert [row["form"] for row in record["rows"]] == FORMS[:2]
    assert seen == [{"meta"}] * len(FORMS[:2]) * 4 and record["device"].startswith("meta")


def test_a_device_that_is_not_there_is_refused(capsys, places):
    message = refused(capsys, "benchmark", f"{places}/student", "--device", "gpu")
    assert "--device gpu: not usable here (Expected one of cpu," in message
    assert message.endswith("expected cpu, or cuda\n")
    message = refused(capsys, "benchmark", f"{places}/teacher-onnx", "--device", "meta")
    assert "ONNX runs on the CPU" in message


def test_the_table_is_that_of_the_record(measured):
    table = benchmark_table(measured)
    assert table.columns[:5] == ["", "EM", "F1", "parameters", "MiB"]
    assert table.columns[5:] == [
        *("ms, 1 x 32", "ms, 4 x 32", "ms, 1 x 128", "ms, 4 x 128"),
        *("a second, 4 x 32", "a second, 4 x 128"),
    ]
    row, first = table.rows[0], measured["rows"][0]
    assert row[0] == "student, PyTorch fp32" and row[2] == f"{first['metrics']['f1']:.2f}"
    assert row[8] == "{median:.1f} ± {spread:.1f}".format(**first["ms"]["128"]["4"])
    assert row[10] == f"{4000 / first['ms']['128']['4']['median']:,.0f}"
    assert "2 validation examples" in table.caption and "texts x tokens" in table.caption


def test_the_plot_is_one_file(measured, places):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    page = (places / "speed.html").read_text()
    assert page.count("<svg") == 1 and page.count("<table>") == 1 and "src=" not in page and "<link" not in page
    assert all(form in page for form in FORMS) and "128 tokens" in page
    write_plot(places / "speed.svg", measured)
    assert (places / "speed.svg").read_text().startswith("<svg")


def test_names_tell_models_apart():
    assert by_short_name(["a/x/", "b"]) == {"x": "a/x", "b": "b"}
    assert by_short_name(["a/x", "b/x", "x"]) == {"a/x": "a/x", "b/x": "b/x", "x": "x"}
    with pytest.raises(UserError, match="named twice"):
        by_short_name(["a/x", "a/x/"])


def test_the_working_folder_has_its_own_name(places, monkeypatch):
    monkeypatch.chdir(places / "student")
    assert by_short_name([".", "../teacher"]) == {"student": f"{places}/student", "teacher": "../teacher"}


def test_models_are_scored_on_data_that_comes_with_some_to_train(tmp_path):
    """A model in bf16 is scored, though it could not be trained; nothing is read of the training data."""
    task, training_args = evaluation_task("", ["--task", "toy", "--max_train_samples", "8", "--max_eval_samples", "8"])
    config = tiny.config(1, 32, vocab_size=len(task.tokenizer), max_position_embeddings=128)
    BertForQuestionAnswering(config).save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    scores = evaluate_in_fp32(load_trained(str(tmp_path)).to(torch.bfloat16), training_args, task)
    assert len(scores.examples["f1"]) == 8
    assert "train_dataset" not in vars(task)


def test_more_tokens_than_models_take_are_refused(capsys, places):
    words = ["--lengths", "32", "384"]
    assert "take at most 128 tokens" in refused(capsys, "benchmark", f"{places}/teacher-onnx", *words)


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(capsys, places, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("itrd_nlp.experiments.benchmark.benchmark", lambda *given, **options: pytest.fail("measured"))
    words = ["--plot", str(tmp_path / "speed.html")]
    assert "pip install 'itrd_nlp[plots]'" in refused(capsys, "benchmark", f"{places}/teacher-onnx", *words)


@pytest.mark.slow
def test_images_are_measured_by_number(tmp_path):
    pytest.importorskip("timm", reason="the extra vision is not installed")
    from itrd_nlp.vision.models import load_image_model

    load_image_model("cifar_resnet8x4", ["cat", "dog"], seed=0)[0].eval().save_pretrained(tmp_path / "model")
    record = benchmark({"small": str(tmp_path / "model")}, batches=[2], repeats=2)
    assert record["lengths"] == [0] and [row["form"] for row in record["rows"]] == FORMS
    table = benchmark_table(record)
    assert table.columns == ["", "parameters", "MiB", "ms, 2", "a second, 2"] and "by images" in table.caption
    with pytest.raises(UserError, match="--lengths 32 with images"):
        benchmark({"small": str(tmp_path / "model")}, lengths=[32])


def test_models_of_other_words_are_not_scored_on_the_same_data(places, tmp_path):
    shutil.copytree(places / "student", tmp_path / "other")  # as many words, but others
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [*vocabulary][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ["--task", "squad", "--validation_file", f"{places}/data.jsonl", "--max_length", "64"]
    task, training_args = evaluation_task(f"{places}/student", words)
    models = {"a": f"{places}/student", "b": str(tmp_path / "other")}
    with pytest.raises(UserError, match="a and b differ in their vocabularies"):
        benchmark(models, task, training_args, lengths=[8], batches=[1], repeats=2)


def test_names_are_compared_where_there_are_classes():
    def model(**names):
        return tiny.config(num_labels=len(names), id2label=dict(enumerate(names)))

    def check(one, other, one_score=False):
        forms = [({"name": name}, SimpleNamespace(config=config)) for name, config in (("a", one), ("b", other))]
        _check_alike({}, forms, SimpleNamespace(one_score=one_score, tokenizer=None))

    check(model(score=1), model(LABEL_0=1))
    check(model(no=1, yes=1), model(score=1), one_score=True)
    for other in (model(yes=1, no=1), model(score=1), model(no=1, yes=1, maybe=1)):
        with pytest.raises(UserError, match="differ in their classes"):
            check(model(no=1, yes=1), other)


def test_a_copy_in_bf16_is_what_transformers_loads(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ModernBertModel(ModernBertConfig(**sizes, vocab_size=40, pad_token_id=0))
    model.save_pretrained(tmp_path)
    loaded = dict(ModernBertModel.from_pretrained(tmp_path, dtype=torch.bfloat16).named_buffers())
    copied = dict(_in_bf16(model).named_buffers())
    assert copied.keys() == loaded.keys() and {x.dtype for x in copied.values()} == {torch.float32}
    assert all(torch.equal(x, loaded[name]) and x.dtype == loaded[name].dtype for name, x in copied.items())


def test_scoring_leaves_a_model_as_it_was(places):
    words = ["--task", "squad", "--validation_file", f"{places}/data.jsonl", "--max_length", "64"]
    task, training_args = evaluation_task(f"{places}/student", [*words, "--bf16_full_eval", "true"])
    model = BertForQuestionAnswering.from_pretrained(places / "student")
    before = copy.deepcopy(model.state_dict())
    half = evaluate(model, training_args, task)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert evaluate_in_fp32(model, training_args, task).examples.keys() == half.examples.keys()


def test_the_model_that_is_scored_is_the_one_that_was_named(capsys, places):
    words = ["--validation_file", f"{places}/data.jsonl", "--teacher", f"{places}/teacher"]
    for command in ("evaluate", "export", "benchmark"):
        assert "--teacher beside a saved model" in refused(capsys, command, f"{places}/student", *words)
