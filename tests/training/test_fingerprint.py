"""What decides a run: every argument of Trainer is judged, and what is not counts."""

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import transformers
from packaging.version import Version
from transformers import TrainingArguments

import tiny
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.experiments.output_folder import baseline_fingerprint, check_reserved, run_fingerprint
from itrd_nlp.training.fingerprint import ARGUMENTS, scoring_values, training_values
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import read_json, write_json

JUDGED_UP_TO = "5.24"  # the transformers version up to which ARGUMENTS is complete
UNJUDGED = [field.name for field in dataclasses.fields(TrainingArguments) if field.name not in ARGUMENTS]
NEWER = Version(transformers.__version__).release[:2] > Version(JUDGED_UP_TO).release[:2]
# typed here once more, so that a slip in the table is seen: these alone may change while a run goes on
CANNOT_MATTER = {
    *("output_dir", "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level"),
    *(
        "log_level_replica",
        "log_on_each_node",
        "include_num_input_tokens_seen",
        "disable_tqdm",
        "report_to",
        "run_name",
    ),
    *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug", "skip_memory_metrics"),
    *("save_total_limit", "save_only_model", "save_on_each_node", "save_strategy", "save_steps", "push_to_hub"),
    *("hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision"),
    *("eval_do_concat_batches", "eval_accumulation_steps"),
    *("eval_use_gather_object", "per_device_eval_batch_size", "prediction_loss_only", "include_for_metrics"),
    *("batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "metric_for_best_model", "greater_is_better"),
    *("dataloader_num_workers", "dataloader_pin_memory", "ddp_timeout", "use_cache"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "torch_empty_cache_steps"),
    *("do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank", "average_tokens_across_devices"),
    *("ignore_data_skip", "restore_callback_states_from_checkpoint"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),  # names of activation_checkpointing, which counts
    *("label_smoothing_factor", "use_liger_kernel", "liger_kernel_config", "enable_jit_checkpoint"),  # refused
    "parallelism_config",
}
NAMES = [each.name for each in dataclasses.fields(ITRDArguments)]


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    return ITRDArguments(str(tmp_path_factory.mktemp("out")), bf16=False)


def changed(args, **values):
    """The same arguments with other values, unchecked: some need hardware that is not here."""
    other = copy.copy(args)
    for name, value in values.items():
        setattr(other, name, value)
    return other


def test_every_argument_of_trainer_is_judged():
    if NEWER:
        pytest.skip(f"arguments are judged up to transformers {JUDGED_UP_TO}; what is newer counts: {UNJUDGED}")
    assert not UNJUDGED, f"nobody has judged {UNJUDGED}: add them to itrd_nlp.training.fingerprint.ARGUMENTS"


@pytest.mark.skipif(NEWER, reason=f"arguments are judged up to transformers {JUDGED_UP_TO}")
def test_the_table_judges_nothing_that_is_not_there():
    if Version(transformers.__version__).release[:2] == Version(JUDGED_UP_TO).release[:2]:
        assert not set(ARGUMENTS) - set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_counts_unless_it_cannot_matter(args, name):
    values = {"name": name, "teacher_cache_dtype": "bfloat16", "teacher_cache": "off", "accelerator_config": {"a": 1}}
    values["parallelism_config"] = SimpleNamespace(to_json=dict)
    other = changed(args, **{name: values.get(name, ["another value"])})
    assert (training_values(other) != training_values(args)) == (name not in CANNOT_MATTER)


def test_what_evaluation_decides_counts_where_it_has_a_say(args):
    for chooses in ({"load_best_model_at_end": True}, {"lr_scheduler_type": "reduce_lr_on_plateau"}):
        before = training_values(changed(args, **chooses))
        for name in ("eval_steps", "eval_delay", "save_steps", "metric_for_best_model", "greater_is_better"):
            assert training_values(changed(args, **chooses, **{name: 7})) != before, name
        assert training_values(changed(args, **chooses, per_device_eval_batch_size=7)) == before


def test_what_only_distils_does_not_change_a_baseline(args):
    other = changed(args, losses={"kd": {}}, pooling="cls", task_weight=0.5, teacher_cache="off")
    assert training_values(other, distils=False) == training_values(args, distils=False)
    assert training_values(changed(args, nonfinite="skip"), False) != training_values(args, False)


@dataclass(repr=False)
class Later(ITRDArguments):
    """As of a transformers that has more."""

    something_new: float = field(default=1.0)


def test_what_nobody_has_judged_counts_where_it_is_set(tmp_path):
    usual, other = Later(str(tmp_path), bf16=False), Later(str(tmp_path), bf16=False, something_new=2.0)
    assert "something_new" not in training_values(usual)
    assert training_values(other)["something_new"] == scoring_values(other)["something_new"] == 2.0


def test_scores_know_how_they_were_computed(args):
    for name in ("bf16", "bf16_full_eval", "fp16_full_eval", "tf32", "use_cpu"):
        assert scoring_values(changed(args, **{name: "other"})) != scoring_values(args), name
    assert scoring_values(changed(args, learning_rate=1.0, seed=3)) == scoring_values(args)


def test_a_file_counts_by_its_content_and_an_accelerator_config_by_what_differs(args, tmp_path):
    path = tmp_path / "zero2.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    before = training_values(changed(args, deepspeed=str(path)))
    path.rename(tmp_path / "moved.json")
    assert training_values(changed(args, deepspeed=str(tmp_path / "moved.json"))) == before
    (tmp_path / "moved.json").write_text('{"zero_optimization": {"stage": 3}}')
    assert training_values(changed(args, deepspeed=str(tmp_path / "moved.json"))) != before
    assert training_values(args)["accelerator_config"] is None
    split = ITRDArguments(str(tmp_path), bf16=False, accelerator_config={"split_batches": True})
    assert training_values(split)["accelerator_config"] == {"split_batches": True}


class _Task:
    train_dataset, eval_dataset = tiny.rows(6), tiny.rows(3, seed=1)
    vocabulary = None

    def scoring(self):
        return {}


def test_equal_numbers_are_equal_and_validation_data_counts_where_it_chooses(args):
    start, task, other = tiny.bert(layers=1), _Task(), _Task()
    other.eval_dataset = tiny.rows(3, seed=2)
    plans = [baseline_fingerprint(changed(args, num_train_epochs=n), task, start) for n in (3, 3.0)]
    assert json.dumps(plans[0]) == json.dumps(plans[1])
    assert baseline_fingerprint(args, other, start) == baseline_fingerprint(args, task, start)
    best = changed(args, load_best_model_at_end=True)
    assert baseline_fingerprint(best, other, start) != baseline_fingerprint(best, task, start)


def test_validation_data_counts_where_the_student_alone_is_chosen_by_it(args):
    other, start, teacher = _Task(), tiny.bert(layers=1), tiny.bert()
    other.eval_dataset = tiny.rows(3, seed=2)
    baseline = baseline_fingerprint(args, _Task(), start)
    best = changed(args, load_best_model_at_end=True)
    assert run_fingerprint(best, baseline, teacher, other) != run_fingerprint(best, baseline, teacher, _Task())
    assert run_fingerprint(args, baseline, teacher, other) == run_fingerprint(args, baseline, teacher, _Task())


def test_the_schedule_of_evaluation_counts_where_it_is_set(args):
    """Each evaluation draws from the generator that dropout on a CPU draws from."""
    assert "eval_strategy" not in training_values(args)  # as in plans of earlier versions
    assert training_values(changed(args, eval_strategy="epoch"))["eval_strategy"] == "epoch"


def test_the_config_of_a_teacher_is_part_of_a_run(args):
    """Its number of heads changes its outputs, and stands in no weight."""
    baseline = baseline_fingerprint(args, _Task(), tiny.bert(layers=1))
    plans = [run_fingerprint(args, baseline, tiny.bert(num_attention_heads=heads), _Task()) for heads in (4, 2)]
    assert plans[0]["teacher"] == plans[1]["teacher"] and plans[0] != plans[1]


def test_a_run_of_an_earlier_version_is_named_and_not_continued(args, tmp_path):
    plan = run_fingerprint(args, baseline_fingerprint(args, _Task(), tiny.bert(layers=1)), tiny.bert(), _Task())
    write_json(tmp_path / "plan.json", {key: value for key, value in plan.items() if key not in ("version", "tf32")})
    with pytest.raises(UserError, match="holds a run that another version of itrd_nlp began") as error:
        check_reserved(tmp_path, plan, overwrite=False)
    assert "\n" not in str(error.value)
    assert "version" in check_reserved(tmp_path, plan, overwrite=True)
    write_json(tmp_path / "plan.json", plan)
    assert check_reserved(tmp_path, plan, overwrite=False) == [] and "version" in read_json(tmp_path / "plan.json")


REFUSED = [name for name, judged in ARGUMENTS.items() if judged.handling == "refused"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_name(args, tmp_path, name):
    with pytest.raises(UserError, match=f"^{name}: .*; leave it out$") as error:
        ITRDTrainer(model=tiny.bert(layers=1), args=changed(args, **{name: 0.1}), train_dataset=tiny.rows(4))
    assert "\n" not in str(error.value)


def test_every_argument_has_one_of_three_handlings():
    assert {judged.handling for judged in ARGUMENTS.values()} == {"honoured", "refused", "without effect"}
    assert all(judged.reason for judged in ARGUMENTS.values() if judged.handling != "honoured")
    inherited = {each.name for each in dataclasses.fields(TrainingArguments)}
    assert {name for name, judged in ARGUMENTS.items() if judged.decides == "distillation"}.isdisjoint(inherited)
