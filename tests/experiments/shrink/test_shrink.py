"""The whole search, small: from an encoder without a head to the smallest student, its export and its files."""

import json
import re
import shutil

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    DebertaConfig,
    DebertaModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import tiny
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.shrink import rounds
from itrd_nlp.experiments.shrink import shrink as module
from itrd_nlp.experiments.shrink.deployment import Cost
from itrd_nlp.experiments.shrink.report import verdict
from itrd_nlp.experiments.shrink.request import Request
from itrd_nlp.experiments.shrink.search import Candidate, Goal
from itrd_nlp.experiments.shrink.shrink import shrink, small_vocabulary
from itrd_nlp.inference.texts import classify
from itrd_nlp.models.vocabulary_cut import least_pieces
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import read_json
from tasks.test_text_classification import LABELS, WORDS, write

CLASSES = LABELS["classification"]
FAST = {"num_train_epochs": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 8}
OPTIONS = ["--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true", "--save_strategy", "no"]
OPTIONS += [f"--teacher_training={json.dumps(FAST)}", *(f"--{name}={value}" for name, value in FAST.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("shrink")
    BertModel(tiny.config(vocab_size=len(tokenizer), max_position_embeddings=512)).save_pretrained(folder / "bare")
    tokenizer.save_pretrained(folder / "bare")
    for name in ("train", "dev", "test"):
        write(folder / f"{name}.csv", CLASSES)
    lines = (folder / "test.csv").read_text().splitlines()
    names = [line.rpartition(",")[2] for line in lines[1:]]
    others = [next(other for other in names if other != name) for name in names[:6]]
    wrong = [f"{line.rpartition(',')[0]},{other}" for line, other in zip(lines[1:7], others, strict=True)]
    (folder / "test.csv").write_text("\n".join([lines[0], *wrong, *lines[7:]]) + "\n")  # a quarter has other labels
    return folder


def words(folder, output, *more):
    files = [f"--{split}_file={folder / name}.csv" for split, name in (("train", "train"), ("validation", "dev"))]
    return [str(folder / "bare"), *files, f"--output_dir={output}", "--layers", "1", "--threads", "1", *OPTIONS, *more]


@pytest.fixture(scope="module")
def output(folder):
    """The folder of a search that has ended; the command's exit code and output are in files in it."""
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    argv = words(folder, folder / "out", "--vocabularies=0", f"--test_file={folder / 'test.csv'}", "--keep=0.9")
    assert main(["shrink", *argv]) == 0
    return folder / "out"


def test_the_choice_is_a_plain_model_with_its_export_card_and_record(output):
    record = read_json(output / "frontier.json")
    assert record["met"] and record["metric"] == "accuracy" and record["examples"] == 24
    (chosen,) = record["candidates"]
    assert record["chosen"] == chosen["name"] == "l1" and chosen["note"] == "chosen"
    assert chosen["kept"] >= 0.9 and chosen["early"] is None and chosen["speedup"] > 0 and chosen["form"] == "int8"
    model = AutoModelForSequenceClassification.from_pretrained(output / "student")
    assert model.config.num_hidden_layers == chosen["layers"]
    assert not (output / "student" / "itrd_state.safetensors").exists()  # for resuming alone
    assert AutoTokenizer.from_pretrained(output / "student")("the king")["input_ids"]
    assert classify(str(output / "onnx"), WORDS["positive"])["label"] == "positive"
    card = (output / "student" / "README.md").read_text()
    assert "student without distillation" in card and "Chosen by `itrd shrink`" in card
    assert "On the test file, scored once, l1 keeps" in card
    table = (output / "frontier.md").read_text()
    assert table in card and "| teacher |" in table and "chosen" in table
    assert f"| l1 without distillation | {chosen['parameters']:,} |" in table
    assert f"| {record['baseline']:.2f} |" in table and "on labels alone" in table
    int8 = record["teacher"]["int8"]
    assert 0 < int8["mib"] < record["teacher"]["mib"] and int8["kept"] > 0.8 and int8["speedup"] > 0
    assert "| ONNX int8, without a student |" in table
    assert record["threads"] == 1 and "one text of 128 tokens, 1 thread, the teacher in PyTorch" in table


def test_a_student_in_int8_keeps_the_times_that_let_it_into_the_search(output):
    (chosen,) = read_json(output / "frontier.json")["candidates"]
    cost = read_json(output / "costs-1-threads.json")["l1"]
    ms, speedup = cost["ms"], cost["speedup"]
    assert (chosen["ms"], chosen["speedup"]) == (ms, speedup)  # a second measurement could miss --min_speedup


def test_the_test_file_decides_nothing(output):
    record = read_json(output / "frontier.json")
    (chosen,) = record["candidates"]
    assert record["test"]["examples"] == 24 and record["test"]["score"] <= chosen["score"] - 20


def test_a_corrected_test_file_is_scored_again(folder, output):
    argv = words(folder, output, "--vocabularies=0", f"--test_file={folder / 'test.csv'}", "--keep=0.9")
    lines = (folder / "test.csv").read_text().splitlines()
    (folder / "test.csv").write_text("\n".join(lines[:-4]) + "\n")
    try:
        assert main(["shrink", *argv]) == 0
        assert read_json(output / "frontier.json")["test"]["examples"] == 20
    finally:
        (folder / "test.csv").write_text("\n".join(lines) + "\n")


def test_a_test_file_whose_schema_has_another_order_is_scored_alike(folder, output):
    frame = pandas.read_csv(folder / "test.csv")
    schema = Features({"text": Value("string"), "label": ClassLabel(names=sorted(CLASSES, reverse=True))})
    Dataset.from_pandas(frame, features=schema, preserve_index=False).to_parquet(folder / "test.parquet")
    tests = []
    for name in ("test.parquet", "test.csv"):
        argv = words(folder, output, "--vocabularies=0", f"--test_file={folder / name}", "--keep=0.9")
        assert main(["shrink", *argv]) == 0
        tests.append(read_json(output / "frontier.json")["test"])
    assert tests[0] == tests[1]


def test_a_value_that_is_called_like_an_option_is_a_value(folder, output):
    argv = words(folder, output, "--vocabularies=0", "--keep=0.9")
    assert main(["shrink", *argv, "--label_column", "label"]) == 2  # another search, not a refused option
    with pytest.raises(UserError, match="--label with `itrd shrink`: the search decides it"):
        shrink(str(folder / "bare"), str(folder / "train.csv"), str(folder / "dev.csv"), argv=["--label", "x"])


def test_the_same_command_trains_nothing_again_and_ends_with_json(folder, output, capsys):
    before = {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}
    argv = words(folder, output, "--vocabularies=0", f"--test_file={folder / 'test.csv'}", "--keep=0.9")
    capsys.readouterr()
    assert main(["shrink", *argv]) == 0
    said = capsys.readouterr()
    values = json.loads(said.out.splitlines()[-1])
    assert [*values] == ["chosen", "kept", "mib", "speedup", "seconds", "candidates"] and values["candidates"] == 1
    runs = {path: time for path, time in before.items() if "runs" in path.parts or "shared" in path.parts}
    assert all(path.stat().st_mtime_ns == time for path, time in runs.items()) and runs
    assert re.search(r"is the smallest student tried that meets the goal \(90 % of the teacher's accuracy", said.out)


@pytest.mark.parametrize("removed", [".", "model.safetensors"])
def test_a_student_whose_weights_were_removed_is_trained_again(folder, output, removed):
    student = next(output.glob("runs/*/whole/student"))
    shutil.rmtree(student) if removed == "." else (student / removed).unlink()
    argv = words(folder, output, "--vocabularies=0", f"--test_file={folder / 'test.csv'}", "--keep=0.9")
    assert main(["shrink", *argv]) == 0
    assert (student / "model.safetensors").is_file()


def test_an_edited_card_stays_as_it_is(folder, output):
    card = output / "student" / "README.md"
    ours = card.read_text()
    card.write_text(ours.replace("# ", "# My own ", 1))
    argv = words(folder, output, "--vocabularies=0", f"--test_file={folder / 'test.csv'}", "--keep=0.9")
    assert main(["shrink", *argv]) == 0
    assert card.read_text() == ours.replace("# ", "# My own ", 1)
    card.write_text(ours)


def test_a_search_does_not_end_with_a_teacher_that_cannot_be_exported(folder, output, monkeypatch):
    def refuse(*args):
        raise UserError("2.1 GiB: expected less")

    monkeypatch.setattr(rounds, "deploy_teacher", refuse)
    (output / "deployed" / "teacher.json").unlink()
    argv = words(folder, output, "--vocabularies=0", f"--test_file={folder / 'test.csv'}", "--keep=0.9")
    assert main(["shrink", *argv]) == 0
    assert "int8" not in read_json(output / "frontier.json")["teacher"]


def test_a_corpus_without_a_smaller_vocabulary_is_refused(folder, tmp_path):
    more = [*OPTIONS, "--corpus", "more.txt"]
    with pytest.raises(UserError, match="--corpus more.txt: no candidate has a smaller vocabulary"):
        shrink(str(folder / "bare"), "a.csv", str(folder / "dev.csv"), output_dir=tmp_path, vocabularies=[0], argv=more)


def test_a_small_vocabulary_leaves_room_for_more_than_the_alphabet(folder, tmp_path, monkeypatch):
    assert small_vocabulary(str(folder / "bare")) == 8000
    monkeypatch.setattr(module, "PIECES", 100)
    assert small_vocabulary(str(folder / "bare")) == 2 * least_pieces(AutoTokenizer.from_pretrained(folder / "bare"))
    assert small_vocabulary(str(tmp_path)) == 0  # no tokenizer


def test_a_goal_that_no_student_meets_keeps_the_nearest_and_exits_with_3(folder, output, monkeypatch, capsys):
    share = rounds.share_kept
    monkeypatch.setattr(rounds, "share_kept", lambda *args, **scores: {**share(*args, **scores), "kept": 0.5})
    argv = words(folder, output, "--vocabularies=0", "--keep=0.99")
    assert main(["shrink", *argv]) == 3
    said = capsys.readouterr().out
    assert "No student tried meets the goal (99 % of the teacher's accuracy). The nearest is l1: " in said
    assert "l1 was chosen and scored on the same file" in said


def test_a_teacher_that_meets_what_no_student_does_is_not_said_to_meet_it_too(output):
    record = read_json(output / "frontier.json")
    record |= {"met": False, "test": None}
    record["teacher"]["int8"] |= {"kept": 0.99, "kept_low": None}
    said = verdict(record)
    assert "The nearest is l1: " in said and "The teacher itself, in int8, meets it: 99.0 %" in said


def test_a_search_in_half_precision_scores_teachers_in_fp32(folder, tmp_path, monkeypatch):
    request = Request(str(folder / "bare"), str(folder / "train.csv"), str(folder / "dev.csv"), tmp_path, words=OPTIONS)
    search = rounds.Search(request, Goal(), [Candidate(1)])
    search.training_args.bf16 = True
    monkeypatch.setattr(search, "_load_teacher", lambda: None)
    monkeypatch.setattr(rounds, "evaluate_once", lambda model, run_args, training_args, task: training_args.bf16)
    assert search.teacher_scores is False and search.training_args.bf16


def refused(folder, tmp_path, **changes):
    """What `shrink` says of wrong input, before anything is trained."""
    options = {"train_file": str(folder / "train.csv"), "validation_file": str(folder / "dev.csv"), **changes}
    argv = [*OPTIONS, *options.pop("argv", [])]
    with pytest.raises(UserError) as error:
        shrink(options.pop("model", str(folder / "bare")), output_dir=tmp_path / "out", argv=argv, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "shared").exists()
    return str(error.value)


def test_wrong_input_is_one_line_before_anything_is_trained(folder, tmp_path):
    assert "--keep 1.2: expected a share" in refused(folder, tmp_path, keep=1.2)
    assert "--threads 0: expected 1 or more" in refused(folder, tmp_path, threads=0)
    assert "--layers 9: expected 1 to 4" in refused(folder, tmp_path, layers=[9])
    assert "expected one of squad" in refused(folder, tmp_path, task="squat")
    assert "does not exist" in refused(folder, tmp_path, train_file="no.csv")
    other = write(tmp_path / "other.csv", ("happy", "sad"))
    assert "happy" in refused(folder, tmp_path, validation_file=other)
    assert "happy" in refused(folder, tmp_path, test_file=other)
    (tmp_path / "empty.csv").write_text("text,label\n")
    assert "holds no rows" in refused(folder, tmp_path, train_file=str(tmp_path / "empty.csv"))
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=200)).save_pretrained(tmp_path / "gpt")
    AutoTokenizer.from_pretrained(folder / "bare").save_pretrained(tmp_path / "gpt")
    assert "decoder" in refused(folder, tmp_path, model=str(tmp_path / "gpt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    deberta = DebertaModel(DebertaConfig(**sizes, vocab_size=400))
    deberta.save_pretrained(tmp_path / "deberta")
    AutoTokenizer.from_pretrained(folder / "bare").save_pretrained(tmp_path / "deberta")
    said = refused(folder, tmp_path, model=str(tmp_path / "deberta"), hidden_sizes=[16, 8], vocabularies=[0])
    assert said.endswith("to try no narrower students: --hidden_sizes 16")
    said = refused(folder, tmp_path, layers=[3, 1], vocabularies=[0], argv=["--layer_map=[[4,3]]"])
    assert "layer_map has the pair [4, 3]" in said  # of the second student
    (tmp_path / "texts.csv").write_text("text\nthe king\nthe river\n")
    texts = {f"{split}_file": str(tmp_path / "texts.csv") for split in ("train", "validation")}
    assert "has no head" in refused(folder, tmp_path, **texts)


def test_limits_that_no_student_is_within_are_refused_before_anything_is_trained(folder, tmp_path, monkeypatch):
    costs = {"l1": Cost(1000, 0.21, 2.0, 3.5), "l2": Cost(2000, 0.3, 3.0, 2.5)}
    monkeypatch.setattr(rounds, "measure_untrained", lambda *args: costs)
    said = refused(folder, tmp_path, max_mib=0.1, min_speedup=9, layers=[1, 2], vocabularies=[0])
    assert said.startswith("--max_mib 0.1 --min_speedup 9: no candidate is within the limits: the smallest, ")
    assert "l1, takes 0.2 MiB, the fastest, l1, is 3.5 times as fast" in said


@pytest.mark.parametrize("name", ["onnx", "student", "plan.json"])
def test_a_folder_with_the_work_of_others_is_refused_and_left_as_it_is(folder, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which no search made"):
        shrink(str(folder / "bare"), str(folder / "train.csv"), str(folder / "dev.csv"), output_dir=tmp_path)
    assert (tmp_path / name / "mine").read_text() == "mine" and not (tmp_path / "request.json").exists()


@pytest.mark.parametrize("word", ["--push_to_hub=true", "--hub_model_id"])
def test_publishing_every_student_is_refused(folder, tmp_path, word):
    with pytest.raises(UserError, match="would publish every student that is tried"):
        shrink(
            *(str(folder / "bare"), str(folder / "train.csv"), str(folder / "dev.csv")),
            output_dir=tmp_path,
            argv=[word, *(["me/mine"] if "=" not in word else [])],
        )


def test_a_search_of_an_earlier_version_is_not_continued(folder, tmp_path):
    (tmp_path / "request.json").write_text('{"words": []}')
    with pytest.raises(UserError, match="holds a search that another version of itrd_nlp began"):
        shrink(str(folder / "bare"), str(folder / "train.csv"), str(folder / "dev.csv"), output_dir=tmp_path)


def test_another_search_in_the_same_folder_is_refused(folder, output):
    with pytest.raises(UserError, match="holds another search, which differs in train_file: expected"):
        shrink(str(folder / "bare"), str(folder / "dev.csv"), str(folder / "dev.csv"), output_dir=output, argv=OPTIONS)


def test_several_students_are_compared_after_a_short_training(folder, output):
    argv = words(folder, output, "--vocabularies=0", "--keep=0.9", "--layers", "1", "2")
    assert main(["shrink", *argv]) == 0
    rows = {row["name"]: row for row in read_json(output / "frontier.json")["candidates"]}
    assert [*rows] == ["l1", "l2"]
    records = [json.loads((output / "runs" / name / "short" / "record.json").read_text()) for name in rows]
    assert [record["arguments"]["num_train_epochs"] for record in records] == [2, 2]  # of 8
    early = [record["metrics"]["student"]["accuracy"] for record in records]
    assert [row["early"] for row in rows.values()] == early
