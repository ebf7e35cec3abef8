"""Exported models against PyTorch, and run without it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

from transformers import (  # noqa: E402
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

import tiny  # noqa: E402
from cli.test_main import CONTEXT, ROWS, refused  # noqa: E402
from itrd_nlp.cli.main import main  # noqa: E402
from itrd_nlp.experiments.evaluation import with_task  # noqa: E402
from itrd_nlp.export import onnx as onnx_writer  # noqa: E402
from itrd_nlp.export.comparison import difference, refuse_difference  # noqa: E402
from itrd_nlp.export.export import export  # noqa: E402
from itrd_nlp.inference.answering import answer  # noqa: E402
from itrd_nlp.inference.saved_models import load_trained  # noqa: E402
from itrd_nlp.models.onnx_model import OnnxModel, exported_settings  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402

ALONE = """
import os, runpy, sys
for name in ("torch", "transformers", "itrd_nlp", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])  # as of a script
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder, *words):
    """What run.py of a folder prints where torch and transformers cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", ALONE, folder / "run.py", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def answering(tmp_path_factory, tokenizer):
    """A model that answers, the folder it was exported to with a validation file, and that file."""
    place = tmp_path_factory.mktemp("answering")
    data = place / "data.jsonl"
    data.write_text("\n".join(json.dumps({**row, "id": f"{i}{row['id']}"}) for i in range(3) for row in ROWS))
    torch.manual_seed(0)
    config = tiny.config(layers=2, vocab_size=len(tokenizer), max_position_embeddings=512)
    model = saved(BertForQuestionAnswering(config), tokenizer, place / "model")
    words = ["--task", "squad", "--validation_file", str(data), "--max_length", "64", "--disable_tqdm", "true"]
    assert main(["export", model, "--output", str(place / "onnx"), *words]) == 0
    return model, place / "onnx", data, words


@pytest.fixture(scope="module")
def tagging(tmp_path_factory, tokenizer):
    """A token classifier and its export without data."""
    place = tmp_path_factory.mktemp("tagging")
    torch.manual_seed(0)
    labels = {0: "O", 1: "PLACE", 2: "PERSON"}
    config = tiny.config(
        layers=1, vocab_size=len(tokenizer), id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    model = saved(BertForTokenClassification(config), tokenizer, place / "model")
    return model, place / "onnx", export(model, place / "onnx")


def test_any_batch_and_length_gives_what_pytorch_gives(answering):
    source, folder, *_ = answering
    model = BertForQuestionAnswering.from_pretrained(source).eval()
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    draw = torch.Generator().manual_seed(0)
    for batch, length in ((1, 1), (1, 200), (5, 17)):
        ids = torch.randint(5, model.config.vocab_size, (batch, length), generator=draw)
        mask = torch.ones_like(ids)
        mask[-1, 1 + length // 2 :] = 0
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        with torch.no_grad():
            wanted = model(**feed)
        got = session.run(["start_logits", "end_logits"], {name: value.numpy() for name, value in feed.items()})
        np.testing.assert_allclose(got[0], wanted.start_logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(got[1], wanted.end_logits.numpy(), atol=1e-5)


def test_the_record_is_what_was_measured(answering, capsys):
    model, folder, data, words = answering
    record = json.loads((folder / "export.json").read_text())
    rows = record["rows"]
    assert list(rows) == ["PyTorch fp32", "ONNX fp32", "ONNX int8"] and record["examples"] == 6
    assert rows["ONNX fp32"]["max_difference"] < rows["ONNX fp32"]["tolerance"] < rows["ONNX int8"]["max_difference"]
    assert rows["ONNX int8"]["mib"] < 0.6 * rows["ONNX fp32"]["mib"]
    assert rows["ONNX fp32"]["mib"] == (folder / "onnx" / "model.onnx").stat().st_size / 2**20
    for form, source in zip(rows, (model, folder, folder / "onnx/model_quantized.onnx"), strict=True):
        capsys.readouterr()
        assert main(["evaluate", str(source), *words, "--bf16", "false"]) == 0
        out = capsys.readouterr().out
        assert json.loads(out[out.index("{\n") :])["f1"] == pytest.approx(rows[form]["metrics"]["f1"]), form
    assert rows["PyTorch fp32"]["metrics"] == rows["ONNX fp32"]["metrics"]
    readme = (folder / "README.md").read_text()
    assert f"| ONNX int8 | {rows['ONNX int8']['mib']:.1f} |" in readme and "QUESTION CONTEXT" in readme


def test_an_exported_folder_answers(answering, capsys, tmp_path):
    model, folder, data, _ = answering
    found = []
    for source in (model, folder, folder / "onnx/model_quantized.onnx"):
        capsys.readouterr()
        assert main(["predict", str(source), "--question", "who was it", "--context", CONTEXT]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["text"] == found[1]["text"]
    assert found[1]["score"] == pytest.approx(found[0]["score"], rel=1e-4)
    assert found[2]["text"] == CONTEXT[found[2]["start"] : found[2]["end"]] != ""


def test_a_kill_leaves_an_earlier_export_whole_or_gone(tagging, tmp_path, monkeypatch):
    source, *_ = tagging
    rename, left = Path.rename, 0

    def killed(path, target):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return rename(path, target)

    export(source, tmp_path / "onnx")
    before = sorted((tmp_path / "onnx").rglob("*"))
    monkeypatch.setattr(Path, "rename", killed)
    for renamed, kept in ((0, before), (1, [])):
        left = renamed
        with pytest.raises(KeyboardInterrupt):
            export(source, tmp_path / "onnx")
        assert sorted((tmp_path / "onnx").rglob("*")) == kept
    monkeypatch.undo()
    export(source, tmp_path / "onnx")
    assert sorted((tmp_path / "onnx").rglob("*")) == before


def test_it_runs_with_onnxruntime_and_tokenizers_alone(answering, capsys):
    model, folder, *_ = answering
    for context in (CONTEXT, " and ".join([CONTEXT] * 60)):  # the second takes several windows
        found = alone(folder, "who was it", context)
        for source, *lengths in ((model, "--max_length", "64"), (str(folder),)):  # as it was exported
            capsys.readouterr()
            assert main(["predict", source, "--question", "who was it", "--context", context, *lengths]) == 0
            wanted = json.loads(capsys.readouterr().out)
            assert (found["text"], found["start"]) == (wanted["text"], wanted["start"])
            assert found["score"] == pytest.approx(wanted["score"], rel=1e-3)
    assert context[found["start"] :].startswith(found["text"])
    assert set(alone(folder, "who", CONTEXT, "--model", "onnx/model_quantized.onnx")) == set(wanted)


@pytest.mark.parametrize("task", ["classification", pytest.param("regression", marks=pytest.mark.slow)])
def test_classes_and_scores_run_alone_as_predict_says(task, tmp_path, tokenizer, capsys):
    torch.manual_seed(0)
    labels = {0: "no", 1: "yes"} if task == "classification" else {0: "score"}
    config = tiny.config(vocab_size=len(tokenizer), id2label=labels, label2id={v: k for k, v in labels.items()})
    if task == "regression":
        config.problem_type = task
    model = saved(BertForSequenceClassification(config), tokenizer, tmp_path / "model")
    cells = ("no", "yes") if task == "classification" else ("0.5", "2")
    (tmp_path / "held.csv").write_text(f"text,label\nthe king,{cells[0]}\nthe house of the city,{cells[1]}\n")
    words = ["--output", str(tmp_path / "onnx"), "--validation_file", str(tmp_path / "held.csv"), "--disable_tqdm=true"]
    assert main(["export", model, *words]) == 2  # 256 tokens, as evaluation says too
    assert "at most the 64 tokens" in capsys.readouterr().err.splitlines()[-1]
    words += ["--max_length=32"]
    assert main(["export", model, *words]) == 0
    record = json.loads((tmp_path / "onnx" / "export.json").read_text())
    name = {"classification": "accuracy", "regression": "mse"}[task]
    assert record["rows"]["ONNX fp32"]["metrics"][name] == pytest.approx(
        record["rows"]["PyTorch fp32"]["metrics"][name]
    )
    capsys.readouterr()
    assert main(["predict", model, "--text", "the king"]) == 0
    said = json.loads(capsys.readouterr().out)
    wanted = said["scores"] if task == "classification" else said["score"]
    assert alone(tmp_path / "onnx", "the king") == pytest.approx(wanted, rel=1e-4)
    assert main(["predict", str(tmp_path / "onnx"), "--text", "the king"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.get("scores", again.get("score")) == pytest.approx(wanted, rel=1e-4)
    words = ["--validation_file", str(tmp_path / "held.csv"), "--disable_tqdm=true", "--max_length=32"]
    assert main(["evaluate", str(tmp_path / "onnx/onnx/model_quantized.onnx"), *words]) == 0


def test_how_texts_are_read_can_be_said_without_data(answering, tmp_path, tokenizer, capsys):
    def settings(model, *words):
        argv = ["export", model, "--output", str(tmp_path / "onnx"), "--no_int8", *words]
        assert main(argv) == 0
        return json.loads((tmp_path / "onnx" / "export.json").read_text())["settings"]

    chosen = {"max_length": 64, "doc_stride": 16, "null_threshold": -1.0, "n_best": 5, "max_answer_length": 8}
    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    assert settings(answering[0], *words).items() >= chosen.items()
    model = BertForSequenceClassification(
        tiny.config(layers=1, num_labels=1, vocab_size=len(tokenizer), max_position_embeddings=512)
    )
    one = saved(model, tokenizer, tmp_path / "one")
    capsys.readouterr()
    assert settings(one).items() >= {"max_length": 256, "ranks": False}.items()
    assert "does not say what it scores: exported as a regression" in capsys.readouterr().err
    assert settings(one, "--task", "reranking").items() >= {"max_length": 512, "ranks": True}.items()
    assert "QUERY DOCUMENT" in (tmp_path / "onnx" / "README.md").read_text()
    shutil.rmtree(tmp_path / "onnx")
    three = BertForSequenceClassification(tiny.config(layers=1, num_labels=3, vocab_size=len(tokenizer)))
    source = saved(three, tokenizer, tmp_path / "three")
    assert "one output or two classes" in refused(capsys, "export", source, "--task", "reranking")


def test_other_windows_get_a_stride_of_their_own(answering):
    source, folder, *_ = answering
    words = "Who wrote it?", CONTEXT
    assert exported_settings(folder)["doc_stride"] > 16
    assert answer(str(folder), *words, max_length=16).text == answer(source, *words, max_length=16).text
    options = dict(zip(*[iter(with_task(str(folder), ["--max_length", "16"]))] * 2, strict=True))
    assert options["--max_length"] == "16" and "--doc_stride" not in options


def test_several_targets_are_all_printed_and_unknown_heads_refused(tmp_path, tokenizer):
    from itrd_nlp.export.run_onnx import Model

    names = {0: "valence", 1: "arousal"}
    fields = {"vocab_size": len(tokenizer), "num_labels": 2, "problem_type": "regression", "id2label": names}
    model = tiny.bert("classes", **fields).eval()
    for kind, folder in ((model, "two"), (BertForMaskedLM(model.config), "masked")):
        kind.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    export(str(tmp_path / "two"), tmp_path / "onnx", int8=False)
    expected = model(**tokenizer("the king", return_tensors="pt")).logits[0].tolist()
    assert Model(tmp_path / "onnx")("the king") == pytest.approx(
        dict(zip(names.values(), expected, strict=True)), abs=1e-4
    )
    with pytest.raises(UserError, match="is a BertForMaskedLM: expected a model for squad, classification, tagging"):
        export(str(tmp_path / "masked"), tmp_path / "none", int8=False)


def test_a_head_of_another_kind_needs_no_change(tagging, tokenizer):
    source, folder, record = tagging
    limit = AutoTokenizer.from_pretrained(folder).model_max_length  # at which transformers.js cuts
    assert limit == record["settings"]["max_length"] < tokenizer.model_max_length
    assert record["rows"]["ONNX fp32"]["max_difference"] < 1e-5
    model = BertForTokenClassification.from_pretrained(source).eval()
    tokens = tokenizer(CONTEXT, return_tensors="pt")
    with torch.no_grad():
        best = model(**tokens).logits[0].argmax(1)[1:-1].tolist()
    found = alone(folder, CONTEXT)
    assert [label for _, label in found] == [model.config.id2label[place] for place in best]  # each word is a token
    assert [word for word, _ in found] == CONTEXT.split()
    assert OnnxModel(folder).outputs == ["logits"]


def test_nothing_of_this_machine_is_in_the_files(answering):
    _, folder, *_ = answering
    here = str(Path(torch.__file__).parents[1]).encode()
    for path in filter(Path.is_file, folder.rglob("*")):
        assert here not in path.read_bytes() and str(folder.parent).encode() not in path.read_bytes(), path
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() > 0


def test_a_model_that_differs_is_refused_and_leaves_nothing(tagging, tmp_path, monkeypatch):
    source, folder, record = tagging

    def wrong(model, batch, where):
        shutil.copytree(folder, where)
        with torch.no_grad():
            model.classifier.bias += 0.01

    monkeypatch.setattr("itrd_nlp.export.export.write_model", wrong)
    with pytest.raises(UserError, match="differs by 0.01 from PyTorch, expected at most 0.0001"):
        export(source, tmp_path / "onnx", int8=False)
    assert not list(tmp_path.iterdir())


def test_outputs_of_padding_are_not_compared(tagging):
    source, folder, _ = tagging
    model = BertForTokenClassification.from_pretrained(source).eval()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": torch.full((2, 4), 7), "attention_mask": mask, "token_type_ids": 0 * mask}

    def changed(row, token):
        def forward(**inputs):
            made = model(**inputs)
            made.logits[row, token] += 100
            return made

        return difference(forward, folder / "onnx" / "model.onnx", [batch])

    assert changed(1, 2)["max_difference"] < 1e-5 and changed(1, 3)["beyond"] == 0
    assert changed(1, 1)["max_difference"] == pytest.approx(100, abs=0.01) and changed(0, 3)["beyond"] == 0.5


def test_rounding_may_flip_a_few_signs_of_a_binary_network(tmp_path):
    import onnx

    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    row = {"max_difference": 0.5, "tolerance": 1e-4, "beyond": 0.05}
    for operator, share, passes in (("Sign", 0.05, True), ("Sign", 0.5, False), ("Relu", 0.05, False)):
        graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["y"])], "g", values[:1], values[1:])
        (tmp_path / "onnx").mkdir(exist_ok=True)
        onnx.save(onnx.helper.make_model(graph), tmp_path / "onnx" / "model.onnx")
        if passes:
            refuse_difference({**row, "beyond": share}, tmp_path, "it")
        else:
            with pytest.raises(UserError, match="differs by 0.5"):
                refuse_difference({**row, "beyond": share}, tmp_path, "it")


def test_wrong_input_is_one_line(capsys, tmp_path, answering, tagging, monkeypatch):
    model, folder, data, _ = answering
    (tmp_path / "other").mkdir()
    assert "there is something else" in refused(capsys, "export", model, "--output", str(tmp_path / "other"))
    assert "is exported already" in refused(capsys, "export", str(folder))
    assert "no model in 'nowhere/at-all'" in refused(capsys, "export", "nowhere/at-all")
    assert "it is about evaluating" in refused(capsys, "export", model, "--seed", "1")
    assert "BertForQuestionAnswering for squad: expected a cross-encoder" in refused(
        capsys, "export", model, "--task", "reranking"
    )
    assert "n_best 0: expected 1 or more" in refused(capsys, "export", model, "--n_best", "0")
    assert "--doc_stride: it is for question answering" in refused(capsys, "export", tagging[0], "--doc_stride", "8")
    assert "unknown argument '--int4'" in refused(capsys, "export", model, "--int4")
    assert "expected a question-answering model" in refused(
        capsys, "predict", str(tagging[1]), "--question", "who", "--context", CONTEXT
    )
    (tmp_path / "broken" / "onnx").mkdir(parents=True)
    for name in ("config.json", "export.json"):
        shutil.copy(folder / name, tmp_path / "broken")
    (tmp_path / "broken" / "onnx" / "model.onnx").write_bytes((folder / "onnx" / "model.onnx").read_bytes()[:5000])
    assert "expected a model that `itrd export` wrote" in refused(
        capsys, "predict", str(tmp_path / "broken"), "--question", "who", "--context", CONTEXT
    )
    headless = tmp_path / "headless"
    BertForQuestionAnswering(BertConfig(**tiny.config(layers=1).to_dict())).bert.save_pretrained(headless)
    text = (headless / "config.json").read_text().replace("BertModel", "BertForQuestionAnswering")
    (headless / "config.json").write_text(text)
    with pytest.raises(UserError, match="lacks qa_outputs.bias and 1 more: expected a trained model"):
        load_trained(str(headless))
    (headless / "config.json").write_text(text.replace("BertForQuestionAnswering", "os.system"))
    assert "expected an encoder of transformers" in refused(capsys, "export", str(headless))

    def older(*args, **options):
        raise ModuleNotFoundError("No module named 'onnxscript._framework_apis.torch_2_11'")

    monkeypatch.setattr(torch.onnx, "export", older)
    with pytest.raises(
        UserError, match="cannot export it .ModuleNotFoundError: No module.*; another torch and onnxscript may"
    ):
        export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(onnx_writer, "LARGEST", 1000)
    with pytest.raises(UserError, match="an ONNX file holds 2"):
        export(model, tmp_path / "new")
    embedder = tmp_path / "embedder"
    saved(BertModel(tiny.config(layers=1)), AutoTokenizer.from_pretrained(model), embedder)
    parts = [{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "a.Dense"}]
    (embedder / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match="makes its embeddings by Dense: expected the mean of the tokens or the first"):
        export(str(embedder), tmp_path / "new")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'itrd_nlp[export]'" in refused(capsys, "export", model)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'itrd_nlp[export]'" in refused(
        capsys, "predict", str(folder), "--question", "who", "--context", CONTEXT
    )


def test_images_of_any_number_are_classified(tmp_path):
    pytest.importorskip("timm", reason="the extra vision is not installed")
    from PIL import Image

    from itrd_nlp.vision.models import load_image_model

    names = ["cat", "dog", "emu"]
    model, _ = load_image_model("cifar_resnet8x4", names, seed=0)
    model.eval().save_pretrained(tmp_path / "model")
    record = export(str(tmp_path / "model"), tmp_path / "onnx")
    assert record["rows"]["ONNX fp32"]["max_difference"] < record["rows"]["ONNX fp32"]["tolerance"]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    how = record["preprocessing"]
    values = (torch.tensor(pixels).permute(2, 0, 1) / 255 - torch.tensor(how["mean"])[:, None, None]) / torch.tensor(
        how["std"]
    )[:, None, None]
    with torch.no_grad():
        wanted = model(pixel_values=values[None]).logits[0].softmax(0)
    found = alone(tmp_path / "onnx", str(tmp_path / "image.png"))
    assert [found[name] for name in names] == pytest.approx(wanted.tolist(), abs=1e-5)
    int8 = OnnxModel(tmp_path / "onnx/onnx/model_quantized.onnx")(pixel_values=values.repeat(7, 1, 1, 1))["logits"]
    assert int8.shape == (7, 3)


@pytest.mark.slow
def test_the_script_sees_pictures_as_the_models_own_processor_does(tmp_path):
    """A processor that squashes, a photograph of a phone; by Pillow, and by transformers where Pillow cannot."""
    pytest.importorskip("timm", reason="the extra vision is not installed")
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    from transformers.image_utils import load_image

    own = ViTImageProcessor(size={"height": 32, "width": 32}, resample=3)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **shape, num_labels=3)).eval()
    model.classifier.weight.data *= 30  # so that pixels decide
    model.save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    record = export(str(tmp_path / "model"), tmp_path / "onnx", int8=False)
    assert record["preprocessing"]["fit"] == "squash"
    y, x = np.mgrid[0:50, 0:170]
    waves = np.stack([128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 5), 1.4 * x], -1).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    script, file, names = tmp_path / "onnx" / "run.py", tmp_path / "phone.png", model.config.id2label.values()
    Image.fromarray(waves).save(file, exif=exif)
    with torch.no_grad():
        wanted = model(**own(load_image(str(file)), return_tensors="pt")).logits[0].softmax(0).tolist()
    found = alone(tmp_path / "onnx", file)
    assert [found[name] for name in names] == pytest.approx(wanted, abs=0.01)

    record["preprocessing"] = None  # as of a processor whose steps numpy and Pillow do not have
    (tmp_path / "onnx" / "export.json").write_text(json.dumps(record))
    done = subprocess.run([sys.executable, "-B", "-c", ALONE, script, file], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip().endswith("needs: pip install transformers torch torchvision")
    assert "\n" not in done.stderr.strip()
    done = subprocess.run([sys.executable, script, file], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert [found[name] for name in names] == pytest.approx(wanted, abs=1e-4)
