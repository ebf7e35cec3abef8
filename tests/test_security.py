"""Nothing that is read runs, and nothing is written or told where it was not asked for."""

import json
import pickle
import random
import re
from contextlib import suppress

import pytest
import torch
import yaml
from datasets import Dataset

from cli.test_main import ROWS
from experiments.test_run import SMALL
from itrd_nlp.cli.commands.training import help_text
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import mark_complete
from itrd_nlp.utils.errors import UserError
from tasks.test_malformed import rows


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refused(capsys, *argv):
    assert main(list(argv)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("itrd: error: ")
    return error


@pytest.mark.promise("malicious files")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_model_s_pickle_is_not_run(tmp_path, tiny_bert, tokenizer, name):
    tiny_bert.config.save_pretrained(tmp_path / "model")
    torch.save({"qa_outputs.weight": Bomb(tmp_path / "exploded")}, tmp_path / "model" / name)
    data = Dataset.from_list(rows(random.Random(0)))
    task = SquadTask(tokenizer, data, data, max_length=64, doc_stride=16)
    with pytest.raises(UserError, match="no model in"):
        load_model(str(tmp_path / "model"), task, 0)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.promise("malicious files")
@pytest.mark.parametrize("suffix", ["pth", "th", "safetensors"])
def test_a_network_s_pickle_is_not_run(tmp_path, suffix):
    models = pytest.importorskip("itrd_nlp.vision.models", exc_type=ImportError)
    path = tmp_path / f"weights.{suffix}"
    torch.save({"model": Bomb(tmp_path / "exploded")}, path)
    with pytest.raises(UserError, match="weights"):
        models.load_image_model({"timm": "cifar_resnet20", "checkpoint": str(path)}, ["a", "b"], 0)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.promise("malicious files")
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "itrd_state.safetensors"])
def test_a_checkpoint_s_pickle_is_not_run(tmp_path, name):
    from training.test_trainer import trainer

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, **options).train()
    with (tmp_path / "checkpoint-2" / name).open("wb") as file:
        pickle.dump({"model": Bomb(tmp_path / "exploded")}, file)
    with pytest.raises(UserError, match="cannot be resumed from"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    mark_complete(tmp_path / "checkpoint-2")  # by whoever made it
    with pytest.raises(Exception, match=r"(?i)weights.only|header|deserializ"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.promise("malicious files")
@pytest.mark.parametrize(
    "text",
    [
        "label: !!python/object/apply:os.system ['touch exploded']",
        "label: !!python/object/new:subprocess.Popen [['touch', 'exploded']]",
        "losses: {itrd: {mi_form: !!python/name:os.system }}",
        "label: !!python/module:os",
        "output_dir: ../exploded",
        "shared_dir: exploded",
        "teacher_cache: exploded",
        "push_to_hub: true",
        "hub_token: hf_secret",
        "teacher_training: {output_dir: exploded}",
        "teacher_training: {push_to_hub: true, hub_model_id: thief/model}",
        "baseline_training: {push_to_hub: true}",
        "trust_remote_code: true",
        "teacher_training: {trust_remote_code: true}",
        "student: {from: teacher, layers: 'first:1', trust_remote_code: true}",
        "base: ../../etc/passwd",
        "label: ${jndi:ldap://x}\nbase: /etc/passwd",
    ],
)
def test_a_recipe_runs_nothing_and_writes_nowhere_else(tmp_path, monkeypatch, capsys, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    made = {**SMALL, "baseline": True}
    lines = text.partition(":")[0]
    made.pop(lines, None)
    (tmp_path / "in" / "recipe.yaml").write_text(yaml.safe_dump(made) + text + "\n")
    refused(capsys, "distill", "in/recipe.yaml", "--output_dir", "in/out", "--shared_dir", "in/shared")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.promise("malicious files")
def test_a_model_s_own_code_is_not_run(tmp_path, tiny_bert, tokenizer):
    folder = tmp_path / "model"
    tiny_bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForQuestionAnswering": "evil.E"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Evil: pass\nclass E: pass\n")
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    words = [f"--train_file={data}", f"--validation_file={data}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=re.escape(str(folder))):
        run(*parse(None, [f"--teacher={folder}", f"--shared_dir={tmp_path / 'shared'}", *words]))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.promise("malicious files")
def test_a_tokenizer_s_own_code_is_not_run_though_the_user_is_there_to_be_asked(tmp_path, tokenizer, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with suppress(UserError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.promise("malicious files")
def test_a_dataset_s_script_is_not_run(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    with pytest.raises(UserError, match="could not be loaded.*script"):
        load_squad(str(tmp_path / "data"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.promise("malicious files")
def test_kernels_of_the_hub_are_refused(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps({**SMALL, "attn_implementation": "thief/attention"}))
    places = [f"--output_dir={tmp_path / 'out'}", f"--shared_dir={tmp_path / 'shared'}"]
    told = refused(capsys, "distill", str(tmp_path / "recipe.yaml"), *places)
    assert "attn_implementation 'thief/attention': expected one of transformers' own" in told


@pytest.mark.promise("malicious files")
def test_weights_come_in_by_the_door_alone(tmp_path):
    models = pytest.importorskip("itrd_nlp.vision.models", exc_type=ImportError)
    source = {"timm": "cifar_resnet20", "model_args": {"checkpoint_path": str(tmp_path / "x.pth")}}
    with pytest.raises(UserError, match="where weights come from"):
        models.load_image_model(source, ["a", "b"], 0)


def test_no_argument_trusts_remote_code():
    names = {*RunArguments.__dataclass_fields__, *ITRDArguments.__dataclass_fields__}
    assert not any("trust" in name for name in names) and "trust_remote_code" not in help_text()


@pytest.mark.promise("secrets")
def test_a_token_is_in_nothing_that_is_written(tmp_path, monkeypatch, capsys):
    secret = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    places = [f"--output_dir={tmp_path / 'out'}", f"--shared_dir={tmp_path / 'shared'}"]
    (tmp_path / "recipe.yaml").write_text(json.dumps(SMALL))
    run(*parse(str(tmp_path / "recipe.yaml"), [*places, "--hub_token", secret, "--save_strategy", "steps"]))
    said = capsys.readouterr()
    assert secret not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 9 and not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.promise("secrets")
def test_arguments_are_shown_without_their_token():
    args = ITRDArguments("out", hub_token="hf_secret", use_cpu=True)
    assert not any("hf_secret" in text for text in (repr(args), str(args), f"{[args]}", args.to_json_string()))


def test_all_that_is_written_of_models_is_safetensors(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps({**SMALL, "save_strategy": "steps", "save_steps": 1}))
    places = [f"--output_dir={tmp_path / 'out'}", f"--shared_dir={tmp_path / 'shared'}"]
    run(*parse(str(tmp_path / "recipe.yaml"), places))
    pickles = {path.name for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")}
    # of checkpoints, by Trainer, which reads them with weights_only
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
