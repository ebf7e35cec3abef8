"""A student's card: what it says is what was measured, what it shows runs, and whoever changes it keeps it.

Its metadata is checked with huggingface_hub alone, as the Hub's own check needs the network: the card is read back by
``ModelCard``, which parses the YAML block by the Hub's pattern and refuses a broken ``model-index``; the results come
back as the same ``EvalResult``; what the Hub wants to be ids passes ``validate_repo_id``.
"""

import contextlib
import dataclasses
import io
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.utils import validate_repo_id
from transformers import BertForTokenClassification, BertModel, DistilBertConfig, DistilBertForQuestionAnswering

import tiny
from experiments.test_run import SMALL
from itrd_nlp import answer
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.measure import sources_of
from itrd_nlp.experiments.output_folder import arguments_of
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.losses import LOSSES
from itrd_nlp.training.model_card import card_text, changed_arguments, file_names_only, licence_of, write_card
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record, run_table
from training.test_trainer import trainer


def distil(folder, *argv, **changes):
    """One small run with a recipe of its own file; returns its record."""
    path = folder / "mine.yaml"
    path.write_text(json.dumps({**SMALL, **changes}))
    places = [f"--output_dir={folder / 'out'}", f"--shared_dir={folder / 'shared'}"]
    return run(*parse(str(path), [*places, *argv]), str(path))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a small run, with ``out/student``."""
    folder = tmp_path_factory.mktemp("made")
    distil(folder)
    return folder


def blocks(text, kind):
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def said(code):
    """What a block of code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().strip()


def test_it_has_the_table_of_the_record_and_metadata_that_read_back(made):
    text = (made / "out" / "student" / "README.md").read_text()
    record = Record.read(made / "out" / "record.json")
    table = run_table(dataclasses.replace(record, recipe="mine")).markdown()
    assert table in text and len(table.splitlines()) == 7  # caption, blank, two of the head, three rows
    data = ModelCard(text).data
    asked = {"library_name": "transformers", "pipeline_tag": "question-answering", "metrics": ["exact_match", "f1"]}
    assert asked.items() <= data.to_dict().items() and {"distillation", "itrd"} <= {*data.tags}
    place = ("question-answering", "unknown", "task toy")
    names = {"exact_match": "EM", "f1": "F1"}
    assert data.model_name == "mine" and data.eval_results == [
        EvalResult(*place, name, round(record.metrics["student"][name], 4), metric_name=short)
        for name, short in names.items()
    ]
    assert str(ModelCard(text)) == text  # nothing is lost by reading and writing it
    assert data.license is None and "state a licence" in text and data.base_model is None
    assert "Hinton" in text and "Information Theoretic Representation Distillation" in text


def test_its_code_runs_and_agrees_with_ours(made, monkeypatch, capsys):
    from itrd_nlp.cli.main import main

    monkeypatch.chdir(made / "out")
    text = Path("student/README.md").read_text()
    plain, ours = blocks(text, "python")
    expected = answer("student", "Who wrote it?", "Ada wrote it in 1843.").text
    assert said(plain) == said(ours) == expected and expected in "Ada wrote it in 1843."
    (line,) = blocks(text, "bash")
    capsys.readouterr()
    assert main(shlex.split(line)[1:]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == expected


def test_its_arguments_are_a_recipe_of_the_same_run(made, tmp_path):
    record = Record.read(made / "out" / "record.json")
    (shown,) = blocks((made / "out" / "student" / "README.md").read_text(), "yaml")
    (tmp_path / "again.yaml").write_text(shown)
    assert arguments_of(*parse(str(tmp_path / "again.yaml"), ["--use_cpu", "true"])) == record.arguments
    assert "learning_rate" not in shown and "max_steps: 2" in shown and "use_cpu" not in shown
    assert "bf16: " in shown  # whose default is the machine's


@pytest.mark.parametrize("changes", [{"teacher_cache": "off"}, {"teacher_cache_dtype": "float32"}, {"losses": {}}])
def test_arguments_that_records_hold_otherwise_come_back(tmp_path, changes):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
    asked = arguments_of(*parse(str(tmp_path / "a.yaml")))
    changed = changed_arguments(Record("a", asked, 42), defaults_of(RunArguments))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(changed))
    assert arguments_of(*parse(str(tmp_path / "b.yaml"), ["--use_cpu", "true"])) == asked


@pytest.mark.promise("secrets")
def test_no_path_of_the_machine_is_in_it(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home of somebody"
    tiny.bert(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(home / "teacher")
    tokenizer.save_pretrained(home / "teacher")
    rows = [{"question": f"where {i}", "context": "in the king house", "answer": "house"} for i in range(9)]
    (home / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = {"train_file": "home of somebody/data.jsonl", "validation_file": str(home / "data.jsonl")}
    student = {"from": str(home / "teacher"), "layers": "first:1"}
    distil(tmp_path, task="squad", teacher=str(home / "teacher"), student=student, baseline=False, **files)
    text = (tmp_path / "out" / "student" / "README.md").read_text()
    assert "home of somebody" not in text and str(tmp_path) not in text
    assert "teacher: `teacher`" in text and "Data: `data.jsonl`" in text and "validation_file: data.jsonl" in text


def test_paths_are_told_by_their_names_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "me").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    given = {
        "a": "/no/such/file.json",
        "b": "runs/me",
        "c": "google-bert/bert-base-cased",
        "d": ["", "x" * 5000, 3, None],
    }
    assert file_names_only(given) == {**given, "a": "file.json", "b": "me"} and file_names_only("link") == "link"


def test_a_changed_card_stays_and_another_is_renewed(made, tmp_path, capsys):
    path, record = tmp_path / "README.md", Record.read(made / "out" / "record.json")
    student = tiny.bert(layers=1)

    def write(seed):
        write_card(tmp_path, student, dataclasses.replace(record, seed=seed), sources={})
        return path.read_text()

    assert "seed 1 " in write(1).replace("(", " ") and "seed 2 " in write(2).replace("(", " ")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as some systems keep texts
    assert "seed 3 " in write(3)
    assert "[card]" not in capsys.readouterr().err
    for change in (lambda text: text.replace("# mine", "# Mine"), lambda text: text + "\nMore.\n", lambda text: "mine"):
        path.unlink(missing_ok=True)
        path.write_text(change(write(4)))
        kept = path.read_text()
        assert write(5) == kept and f"{path} was written or changed by hand" in capsys.readouterr().err
    path.write_bytes(b"caf\xe9")
    write_card(tmp_path, student, record, sources={})
    assert path.read_bytes() == b"caf\xe9"


def test_the_same_run_again_keeps_a_changed_card(tmp_path, capsys):
    distil(tmp_path, baseline=False)
    path = tmp_path / "out" / "student" / "README.md"
    path.write_text(path.read_text().replace("# mine", "# A better title"))
    distil(tmp_path, baseline=False)
    assert "# A better title" in path.read_text() and "[card]" in capsys.readouterr().err


def test_an_undistilled_student_has_one_too(tmp_path):
    distil(tmp_path, losses={})
    text = (tmp_path / "out" / "student" / "README.md").read_text()
    data = ModelCard(text).data
    assert "distillation" not in data.tags and "trained on its labels alone" in text and "student with" in text
    assert "Methods used" not in text and "losses: {}" in text


def test_licences_are_those_of_the_models_and_never_made_up(tmp_path, made):
    record = Record.read(made / "out" / "record.json")
    names = {
        "a": "---\nlicense: mit\n---\n",
        "b": "---\nlicense: other\nlicense_name: own\nlicense_link: L\n---\n",
        "c": "",
    }
    for name, card in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(card)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text(json.dumps({"pretrained_cfg": {"license": "apache-2.0"}}))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "README.md").write_text("---\nlicense: [\n---\n")
    found = {name: licence_of(str(tmp_path / name)) for name in "abcde"}
    assert [value.get("license") for value in found.values()] == ["mit", "other", None, "apache-2.0", None]

    def text(*folders):
        sources = dict(zip(("teacher", "started from"), (str(tmp_path / name) for name in folders), strict=False))
        return ModelCard(card_text(tiny.bert(), record, "me/model", sources, {}))

    assert text("a").data.license == "mit" and "## Licence\n\nmit." in text("a").text
    assert text("b").data.license_name == "own" and text("b").data.license_link == "L"
    for both in (("a", "b"), ("a", "c"), ("c",), ("no-such",)):
        assert text(*both).data.license is None and "state a licence" in text(*both).text
    assert "a: mit, b: other" in text("a", "b").text


def test_models_and_data_of_the_hub_are_named_by_their_ids(made, tmp_path):
    record = Record.read(made / "out" / "record.json")
    record.arguments |= {"task": "squad", "dataset": "rajpurkar/squad", "teacher": "google-bert/bert-base-cased"}
    text = card_text(tiny.bert(), record, "me/model", {"teacher": "google-bert/bert-base-cased"}, {})
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-cased", ["rajpurkar/squad"])
    assert {result.dataset_type for result in data.eval_results} == {"rajpurkar/squad"} and data.model_name == "model"
    assert {result.dataset_split for result in data.eval_results} == {None}  # which the record does not hold
    record.arguments["validation_file"] = "/home/me/held-out.json"
    data = ModelCard(card_text(tiny.bert(), record, "me/model", {}, {})).data
    assert {(each.dataset_type, each.dataset_name) for each in data.eval_results} == {("unknown", "held-out.json")}
    record.arguments |= {"train_file": "mine.json", "validation_file": None, "dataset_config": "v1"}
    data = ModelCard(card_text(tiny.bert(), record, "me/model", {}, {})).data
    scored = {(each.dataset_type, each.dataset_name, each.dataset_config) for each in data.eval_results}
    assert scored == {("rajpurkar/squad", "rajpurkar/squad", "v1")}
    data = ModelCard(text).data
    for name in (data.base_model, *data.datasets, data.model_name):
        validate_repo_id(name)
    assert 'from_pretrained("me/model")' in text and "(https://huggingface.co/google-bert/bert-base-cased)" in text
    both = {"teacher": "google-bert/bert-base-cased", "started from": "microsoft/xtremedistil-l6-h256-uncased"}
    assert ModelCard(card_text(tiny.bert(), record, "me/model", both, {})).data.base_model == [*both.values()]


def test_a_data_set_whose_splits_files_replace_is_not_named(made):
    record = Record.read(made / "out" / "record.json")
    record.arguments |= {"task": "squad", "dataset": "rajpurkar/squad", "train_file": "a.json"}
    assert ModelCard(card_text(tiny.bert(), record, "me/model", {}, {})).data.datasets == ["rajpurkar/squad"]
    record.arguments |= {"validation_file": "b.json"}
    text = card_text(tiny.bert(), record, "me/model", {}, {})
    assert ModelCard(text).data.datasets is None and "rajpurkar/squad" not in text.partition("```yaml")[0]


@pytest.mark.parametrize(
    "given,expected",
    [
        ({"student": {"layers": "even:3"}}, {"teacher": "x/t"}),
        ({"student": {"from": "x/s"}}, {"teacher": "x/t", "started from": "x/s"}),
        ({"student": "x/s"}, {"teacher": "x/t", "started from": "x/s"}),
        ({"student": {"model_type": "bert"}}, {"teacher": "x/t"}),
        ({"teacher": {"timm": "cifar_resnet20", "checkpoint": "/x.pth"}}, {"teacher": "cifar_resnet20"}),
    ],
)
def test_what_a_student_comes_from(given, expected):
    run_args, _ = parse(
        None, [f"--{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in ({"teacher": "x/t"} | given).items()]
    )
    assert sources_of(run_args, True) == expected
    plain = sources_of(run_args, False)
    assert "teacher" not in plain and plain.get("started from", "x/s") in ("x/s", "x/t", "cifar_resnet20")


def test_a_student_comes_from_what_its_teacher_was_before_it_was_fine_tuned(tmp_path):
    (tmp_path / "finished.json").write_text('{"source": "x/t", "files": {}}')
    assert sources_of(parse(None, ["--teacher", str(tmp_path)])[0], True) == {"teacher": "x/t"}
    (tmp_path / "finished.json").write_text('{"files": {}}')  # of an earlier version
    assert sources_of(parse(None, ["--teacher", str(tmp_path)])[0], True) == {"teacher": str(tmp_path)}


def shown(model, tokenizer, folder, monkeypatch):
    """What the code of a model's card prints, beside its folder."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    record = Record("recipe", {"losses": {}}, 0, parameters={"student": 1})
    monkeypatch.chdir(folder)
    text = card_text(model, record, "model", {}, {})
    return ModelCard(text).data.pipeline_tag, said(blocks(text, "python")[0])


def test_a_student_that_takes_no_segments_is_shown_without_them(tmp_path, monkeypatch, tokenizer):
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_heads=2, n_layers=1, hidden_dim=16)
    answers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        tag, found = shown(DistilBertForQuestionAnswering(config), tokenizer, tmp_path / str(seed), monkeypatch)
        assert tag == "question-answering" and found == answer("model", "Who wrote it?", "Ada wrote it in 1843.").text
        answers.add(found)
    assert len(answers) > 1


@pytest.mark.parametrize("problem,total", [("single_label_classification", 1), ("multi_label_classification", None)])
def test_classifiers_show_their_labels(tmp_path, monkeypatch, tokenizer, problem, total):
    model = tiny.bert("classes", vocab_size=len(tokenizer), problem_type=problem, num_labels=3)
    tag, found = shown(model, tokenizer, tmp_path, monkeypatch)
    scores = eval(found)
    assert tag == "text-classification" and [*scores] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert all(0 < score < 1 for score in scores.values())
    assert (sum(scores.values()) == pytest.approx(1)) == (total == 1)


def test_regression_taggers_and_encoders_are_shown(tmp_path, monkeypatch, tokenizer):
    config = tiny.config(vocab_size=len(tokenizer))
    model = tiny.bert("classes", vocab_size=len(tokenizer), num_labels=1).eval()
    inputs = tokenizer("Ada wrote it in 1843.", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.item()
    _, found = shown(model, tokenizer, tmp_path / "a", monkeypatch)
    assert eval(found)["LABEL_0"] == pytest.approx(expected, rel=1e-4)
    model.config.problem_type = "multi_label_classification"  # of one class, which holds or does not
    _, found = shown(model, tokenizer, tmp_path / "one", monkeypatch)
    assert eval(found)["LABEL_0"] == pytest.approx(1 / (1 + math.exp(-expected)), rel=1e-4)
    tag, found = shown(BertForTokenClassification(config), tokenizer, tmp_path / "b", monkeypatch)
    assert tag == "token-classification" and [token for token, _ in eval(found)] == inputs.tokens()
    encoder = BertModel(config).eval()
    inputs = tokenizer(["Ada wrote it.", "Written by Ada."], padding=True, return_tensors="pt")
    for pooling in ("mean", "cls"):
        encoder.config.sentence_pooling = pooling
        tag, found = shown(encoder, tokenizer, tmp_path / pooling, monkeypatch)
        with torch.no_grad():
            pooled = Pooling(pooling)([encoder(**inputs).last_hidden_state], inputs)[0]
        expected = torch.nn.functional.cosine_similarity(pooled[0], pooled[1], dim=0).item()
        assert tag == "feature-extraction" and float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "student",
    [
        "cifar_resnet20",
        '{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}',
    ],
)
def test_images_are_classified_by_their_card(tmp_path, monkeypatch, student):
    pytest.importorskip("timm", reason="the extra vision is not installed")
    from vision.pictures import parquet, pictures

    data = parquet(tmp_path / "data.parquet", 16)
    files = [f"--train_file={data}", f"--validation_file={data}", "--per_device_train_batch_size=8"]
    places = [f"--output_dir={tmp_path / 'out'}", f"--shared_dir={tmp_path / 'shared'}"]
    words = [*files, *places, "--task=images", "--teacher=cifar_resnet20", f"--student={student}", "--max_steps=1"]
    run(
        *parse(
            None,
            [*words, "--teacher_training.max_steps=1", "--layer_map=last", "--baseline=false", "--disable_tqdm=true"],
        ),
        "images",
    )
    card = ModelCard.load(tmp_path / "out" / "student" / "README.md")
    assert card.data.pipeline_tag == "image-classification" and card.data.metrics == ["accuracy"]
    monkeypatch.chdir(tmp_path / "out")
    pictures(1)[0]["image"].save("image.png")
    (code,) = blocks(card.text, "python")
    assert ("import itrd_nlp.vision" in code) == student.startswith("cifar_")
    assert re.fullmatch(r"class \d", said(code))


def test_every_method_has_its_paper_and_the_guide_the_same():
    page = Path(__file__).resolve().parents[2] / "docs" / "guides" / "comparing.md"
    guide = page.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\w+) .*?(\w+)?,? (?:[A-Z].* )?(\d{4}).*\|$", guide, re.MULTILINE)
    listed = {name: (author, year) for name, author, _, year in rows if name in LOSSES}
    assert {*listed} == {*LOSSES}
    for name, (author, year) in listed.items():
        assert LOSSES[name].paper.startswith(author) and LOSSES[name].paper.endswith(year), name


def test_a_trainer_alone_writes_what_it_knows(tmp_path):
    teacher = tiny.bert()
    teacher.save_pretrained(tmp_path / "private" / "teacher")
    teacher = type(teacher).from_pretrained(tmp_path / "private" / "teacher")
    made = trainer(tmp_path / "out", teacher, eval_dataset=tiny.rows(8), compute_metrics=lambda _: {"f1": 12.5})
    made.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured" in text and "teacher: `teacher`" in text and str(tmp_path) not in text
    made.evaluate()
    made.train()
    made.create_model_card()
    assert "Not measured" in (tmp_path / "out" / "README.md").read_text()  # no score of these weights
    made.evaluate()
    made.create_model_card(
        license="mit", tags="mine", dataset_tags="rajpurkar/squad", model_name="me/model", language="en"
    )
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", "en", ["rajpurkar/squad"])
    assert {"mine", "itrd", "distillation"} <= {*card.data.tags} and card.data.eval_results[0].metric_value == 12.5
    assert "| student with itrd + kd | 12.50 |" in card.text and "learning_rate: 0.001" in card.text
    assert 'from_pretrained("me/model")' in card.text and "64 training examples" in card.text


def test_the_scores_of_a_trainer_may_be_of_several_data_sets_and_not_all_numbers(tmp_path):
    metrics = {"f1": 0.8746, "PER": {"f1": 1.0}, "confusion": [[1, 2], [3, 4]]}
    sets = {"news": tiny.rows(8), "web": tiny.rows(4)}
    made = trainer(tmp_path, eval_dataset=sets, compute_metrics=lambda _: metrics)
    made.train()
    made.evaluate()
    made.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "news_f1": 0.8746,
        "web_f1": 0.8746,
    }
    assert "| student with itrd + kd | 0.8746 | 0.8746 |" in card.text
    made = trainer(tmp_path / "other", eval_dataset=sets, compute_metrics=lambda _: {"f1": 0.5})
    made.evaluate(tiny.rows(4))  # other data than the trainer's own
    made.create_model_card()
    results = ModelCard.load(tmp_path / "other" / "README.md").data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == {"f1": 0.5}


def test_a_trainer_s_card_has_the_scores_of_the_weights_it_loaded(tmp_path):
    scores = iter([0.2, 0.9, 0.5])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "f1", "save_strategy": "steps", "save_steps": 1}
    data = {"eval_dataset": tiny.rows(8), "compute_metrics": lambda _: {"f1": next(scores)}}
    made = trainer(tmp_path, **data, **best, eval_strategy="steps", eval_steps=1, max_steps=3)
    made.train()
    made.create_model_card()
    assert ModelCard.load(tmp_path / "README.md").data.eval_results[0].metric_value == 0.9
