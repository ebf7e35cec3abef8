"""ITRDTrainer against a plain loop, against itself in pieces, and on two processes."""

import copy
import hashlib
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import FullyShardedDataParallelPlugin
from datasets import DatasetDict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    EarlyStoppingCallback,
    TrainerCallback,
)
from transformers.trainer_pt_utils import AcceleratorConfig

import tiny
from forked import on_ranks
from itrd_nlp import ITRDArguments, ITRDTrainer, correlation_loss, mutual_information_loss, student_from_teacher
from itrd_nlp.distillation.distiller import Distiller
from itrd_nlp.distillation.feature_extractor import accepted_inputs
from itrd_nlp.distillation.teacher_cache import TeacherCache
from itrd_nlp.training.checkpoint import SIDECAR
from itrd_nlp.training.checks import (
    check_activation_checkpointing,
    check_batches,
    check_optimizers,
    check_options,
    check_precision,
)
from itrd_nlp.utils.errors import UserError

COMMON_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
BOTH = {"itrd": {}, "kd": {"temperature": 4}}


def trainer(folder, teacher=None, student=None, data=None, head="qa", collate=tiny.collate, **changes):
    teacher = teacher or tiny.bert(head)
    student = student or student_from_teacher(teacher, "even:2", verbose=False)
    more = {key: changes.pop(key) for key in ("eval_dataset", "callbacks", "compute_metrics") if key in changes}
    options = {
        "losses": BOTH,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "teacher_cache": "off",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "max_steps": 4,
        "logging_steps": 1,
        **changes,
    }
    return ITRDTrainer(
        model=student,
        teacher_model=teacher,
        args=ITRDArguments(str(folder), **options),
        train_dataset=tiny.rows(head=head) if data is None else data,
        data_collator=collate,
        **more,
    )


def plain_loop(student, teacher, projectors, batches, learning_rate):
    """What the trainer does, in a plain loop: task + KD at T 4 + ITRD on the masked mean of the matched layers."""
    parameters = [*student.parameters(), *projectors.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / len(batches))
        real = (batch["attention_mask"] * (1 - batch["special_tokens_mask"])).unsqueeze(-1)
        inputs = {k: v for k, v in batch.items() if k != "special_tokens_mask"}
        with torch.no_grad():
            t = teacher(**inputs, output_hidden_states=True)
        s = student(**inputs, output_hidden_states=True)
        loss = s.loss
        for i, (teacher_layer, student_layer) in enumerate([(2, 1), (4, 2)]):
            zs, zt = [
                (x.hidden_states[layer] * real).sum(1) / real.sum(1)
                for x, layer in ((s, student_layer), (t, teacher_layer))
            ]
            loss = loss + 2 * correlation_loss(projectors[i](zs), zt) / 2 + mutual_information_loss(zs, zt) / 2
        padding = batch["attention_mask"] == 0
        for head in ("start_logits", "end_logits"):
            log_p, q = [(x[head].masked_fill(padding, -1e4) / 4).log_softmax(-1) for x in (s, t)]
            loss = loss + 16 * F.kl_div(log_p, q.exp(), reduction="batchmean") / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_twenty_steps_equal_a_plain_loop(tmp_path):
    ours = trainer(tmp_path, max_steps=20, num_train_epochs=3)
    student = copy.deepcopy(ours.student).train()
    projectors = copy.deepcopy(ours.model.losses["itrd"].projectors)
    batches, seen = [], ours.compute_loss

    def keep(model, inputs, *args, **kwargs):
        batches.append({key: value.clone() for key, value in inputs.items()})
        return seen(model, inputs, *args, **kwargs)

    ours.compute_loss = keep
    ours.train()
    plain_loop(student, ours.teacher, projectors, batches, learning_rate=1e-3)
    assert len(batches) == 20
    start = student_from_teacher(ours.teacher, "even:2", verbose=False).state_dict()
    # softmax ignores a shift, thus these biases: their gradient is rounding noise, which Adam blows up to full steps
    ends = {k: v for k, v in ours.student.state_dict().items() if not k.endswith(("key.bias", "qa_outputs.bias"))}
    moved = max((start[k] - v).abs().max() for k, v in ends.items())
    difference = max((student.state_dict()[k] - v).abs().max() for k, v in ends.items())
    assert moved > 1e-2 and difference < 1e-4 * moved
    for trained, expected in zip(ours.model.losses["itrd"].projectors, projectors, strict=True):
        torch.testing.assert_close(trained.weight, expected.weight)  # correlations ignore the bias


AS_IT_IS = {"dispatch_batches": False}  # accelerate's own error else


class Stream(torch.utils.data.IterableDataset):
    """Rows as they come; ``once``: to the probe alone."""

    def __init__(self, rows, once=False):
        self.rows, self.once, self.asked = rows, once, 0

    def __iter__(self):
        self.asked += 1
        return iter([] if self.once and self.asked > 1 else self.rows)


def weights(ours):
    return {key: value.clone() for key, value in ours.accelerator.unwrap_model(ours.model).state_dict().items()}


def dropping(seed=0):
    return tiny.bert(seed=seed, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


ORDERS = [{"train_sampling_strategy": "group_by_length"}, {"train_sampling_strategy": "random"}]
ORDERS += [{"tokens_per_batch": 128}]


@pytest.mark.parametrize("order", ORDERS, ids=str)
# 8 steps an epoch: inside the first, at its end, inside the second
@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (8, 13))])
def test_resuming_is_bit_equal(tmp_path, order, step):
    options = {"max_steps": 20, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None, **order}
    whole = trainer(tmp_path, teacher=dropping(), **options)
    whole.train()
    resumed = trainer(tmp_path, teacher=dropping(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())
    logs = [
        [{k: v for k, v in log.items() if k in ("loss", "kd")} for log in t.state.log_history[step:20]]
        for t in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_batches_by_tokens_hold_every_example_once_an_epoch(tmp_path):
    made = trainer(tmp_path, tokens_per_batch=128, max_steps=-1, num_train_epochs=2)
    sizes, seen = [], made.compute_loss

    def keep(model, inputs, *args, **kwargs):
        sizes.append(tuple(inputs["input_ids"].shape))
        return seen(model, inputs, *args, **kwargs)

    made.compute_loss = keep
    made.train()
    assert sum(rows for rows, _ in sizes) == 2 * 64 and made.state.epoch == 2
    assert all(rows * -(-length // 8) * 8 <= 128 for rows, length in sizes) and len({rows for rows, _ in sizes}) > 1


@pytest.mark.parametrize("head", ["qa", "classes"])
def test_accumulation_equals_one_large_batch_for_task_and_kd(tmp_path, head):
    ends = []
    for batch, accumulation in [(8, 1), (2, 4)]:
        ours = trainer(
            tmp_path,
            head=head,
            data=tiny.rows(head=head, equal_length=True),
            losses={"kd": {}},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0,
        )
        before = weights(ours)
        ours.train()
        ends.append(weights(ours))
    moved = max((before[k] - ends[0][k]).abs().max() for k in before)
    difference = max((ends[0][k] - ends[1][k]).abs().max() for k in before)
    assert moved > 1e-3 and difference < 1e-3 * moved


def test_terms_are_logged_under_their_names_and_sum_to_the_loss(tmp_path):
    ours = trainer(tmp_path, logging_steps=2, max_steps=4)
    ours.train()
    logs = [log for log in ours.state.log_history if "loss" in log]
    names = {"task", "itrd/correlation", "itrd/mutual_information", "kd"}
    assert len(logs) == 2
    for log in logs:
        assert names <= log.keys()
        assert sum(log[name] for name in names) == pytest.approx(log["loss"], rel=1e-3)


def test_the_saved_folder_is_a_plain_student_with_the_projectors_beside_it(tmp_path):
    ours = trainer(tmp_path)
    ours.train()
    ours.save_model()
    reloaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(reloaded[1][key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(v, ours.student.state_dict()[k]) for k, v in reloaded[0].state_dict().items())
    assert sorted(load_file(tmp_path / SIDECAR)) == sorted(ours.model.losses.state_dict())
    saved = load_file(tmp_path / "model.safetensors")
    assert not (tmp_path / "tokenizer.json").exists()
    assert not [key for key in saved if "project" in key or "teacher" in key]


@pytest.mark.parametrize("by", ["trainer", "collator"])
def test_the_tokenizer_is_saved_wherever_it_was_given(tmp_path, tokenizer, by):
    collator = DataCollatorWithPadding(tokenizer)
    given = {"processing_class": tokenizer} if by == "trainer" else {"data_collator": collator}
    args = ITRDArguments(str(tmp_path), max_steps=1, losses={}, use_cpu=True, disable_tqdm=True)
    data = tiny.rows(8, "classes").remove_columns("special_tokens_mask")
    ours = ITRDTrainer(tiny.bert("classes", vocab_size=len(tokenizer)), args=args, train_dataset=data, **given)
    ours.train()
    ours.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_training_texts_without_labels_can_be_predicted_beside_their_cached_outputs(tmp_path):
    options = {"task_weight": 0.0, "losses": {"kd": {}}, "teacher_cache": str(tmp_path / "cache")}
    ours = trainer(tmp_path, data=tiny.rows(8, labels=False), **options)
    ours.train()
    assert ours.cache is not None
    starts, ends = ours.predict(ours.train_dataset).predictions
    assert len(starts) == len(ends) == 8


def test_validation_examples_with_an_index_of_their_own_are_not_looked_up(tmp_path):
    validation = tiny.rows(12).add_column("example_index", list(range(12)))  # as windows have, of their questions
    options = {"losses": {"kd": {}}, "teacher_cache": str(tmp_path / "cache"), "eval_strategy": "epoch"}
    ours = trainer(tmp_path, data=tiny.rows(4), eval_dataset=validation, **options)
    reads, read = [], TeacherCache.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherCache, "read", lambda self, indices: reads.extend(indices) or read(self, indices))
        ours.train()
    assert ours.cache is not None and len(reads) == 4 * 4  # steps of 4 examples
    assert sum("eval_loss" in log for log in ours.state.log_history) == 4


def test_other_training_data_after_a_training_is_refused(tmp_path):
    ours = trainer(tmp_path, data=tiny.rows(8), losses={"kd": {}}, teacher_cache=str(tmp_path / "cache"))
    ours.train()
    for other in (tiny.rows(6), list(tiny.rows(6))):
        ours.train_dataset = other
        with pytest.raises(UserError, match="train_dataset was replaced"):
            ours.train()
    wrong(tmp_path, "has a column 'training_index'", data=tiny.rows(4).add_column("training_index", [0] * 4))


def test_evaluation_collects_logits_alone(tmp_path):
    teacher, data = tiny.bert("classes"), tiny.rows(8, "classes")
    student = tiny.bert("classes", layers=1)
    student.set_attn_implementation("eager")
    student.config.output_hidden_states = student.config.output_attentions = True
    ours = trainer(tmp_path, teacher, student, data, "classes", losses={"kd": {}})
    assert ours.predict(data).predictions.shape == (8, 2)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"data": DatasetDict(train=tiny.rows(4))}, "train_dataset is a DatasetDict: expected a dataset of examples"),
        ({"head": "classes", "data": tiny.rows(4).add_column("labels", ["a", "b", "a", "b"])}, "makes no batch of"),
        ({"layer_map": 2}, 'layer_map 2: expected "last"'),
        ({"pooling": None}, "pooling None: expected"),
        ({"task_weight": "0.5"}, "task_weight is '0.5': expected a number"),
    ],
    ids=str,
)
def test_wrong_types_are_one_line(tmp_path, changes, words):
    wrong(tmp_path, words, **changes)


def test_arguments_serve_one_trainer_after_another(tmp_path):
    args = trainer(tmp_path).args
    assert args.label_names is None
    student, data = tiny.bert("classes", layers=1), tiny.rows(8, "classes")
    second = ITRDTrainer(student, tiny.bert("classes"), args, tiny.collate, data, eval_dataset=data)
    assert second.label_names == ["labels"] and "eval_loss" in second.evaluate()


def test_every_trainable_tensor_is_in_the_optimizer_and_moves(tmp_path):
    ours = trainer(tmp_path, teacher=tiny.bert(width=48), student=tiny.bert(layers=2, seed=3))
    before = weights(ours)
    ours.train()
    known = {id(p) for group in ours.optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in ours.model.parameters()}
    assert all(not torch.equal(value, before[key]) for key, value in weights(ours).items())


def test_the_teacher_stays_frozen_in_evaluation_mode_and_outside_the_module(tmp_path):
    teacher = tiny.bert()
    before = copy.deepcopy(teacher.state_dict())
    ours = trainer(tmp_path, teacher=teacher)
    ours.train()
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in ours.model.parameters()}


def test_evaluation_neither_asks_the_teacher_nor_carries_hidden_states(tmp_path):
    ours = trainer(tmp_path, eval_dataset=tiny.rows(20))
    ours.ask_teacher = None
    output = ours.predict(ours.eval_dataset)
    assert [x.shape[0] for x in output.predictions] == [20, 20] and len(output.predictions[0].shape) == 2
    assert math.isfinite(ours.evaluate()["eval_loss"])


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_predictions_come_in_the_order_of_the_data(tmp_path, strategy):
    data = tiny.rows(20)
    ours = trainer(tmp_path, eval_dataset=data, train_sampling_strategy=strategy, per_device_eval_batch_size=3)
    starts = ours.predict(data).label_ids[0]
    assert starts.tolist() == data["start_positions"][:]


def test_the_best_checkpoint_is_loaded_and_early_stopping_works(tmp_path):
    scores = iter([0.1, 0.9, 0.2, 0.1, 0.0, 0.0, 0.0])
    ours = trainer(
        tmp_path,
        eval_dataset=tiny.rows(8),
        compute_metrics=lambda _: {"f1": next(scores)},
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=7,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
    )
    ours.train()
    assert ours.state.global_step == 4
    best = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, best[key]) for key, value in ours.student.state_dict().items())


def test_unlabelled_text_with_task_weight_zero(tmp_path):
    options = {"task_weight": 0.0, "losses": {"kd": {"temperature": 4}}, "student": tiny.bert(layers=2, seed=3)}
    ours = trainer(tmp_path, data=tiny.rows(8, labels=False), **options)
    batch = tiny.collate(list(tiny.rows(8, labels=False)))
    student, padding = copy.deepcopy(ours.student).train(), batch["attention_mask"] == 0
    with torch.no_grad():
        s, t = [model(**accepted_inputs(model, batch)) for model in (student, ours.teacher)]
    expected = 0.0
    for head in ("start_logits", "end_logits"):
        log_p, q = [(x[head].masked_fill(padding, -1e4) / 4).log_softmax(-1) for x in (s, t)]
        expected += 16 * F.kl_div(log_p, q.exp(), reduction="batchmean").item() / 2
    ours.train()
    log = ours.state.log_history[0]
    assert "task" not in log and expected > 1e-5
    assert log["kd"] == pytest.approx(expected, rel=1e-4) == log["loss"]


def test_a_teacher_reads_columns_that_the_student_does_not(tmp_path):
    config = DistilBertConfig(
        vocab_size=tiny.VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    ours = trainer(tmp_path, student=DistilBertForQuestionAnswering(config))
    batch = next(iter(ours.get_train_dataloader()))
    assert "token_type_ids" in batch
    changed = {**batch, "token_type_ids": 1 - batch["token_type_ids"]}
    before, after = [ours.ask_teacher(b).logits["start_logits"] for b in (batch, changed)]
    assert not torch.equal(before, after)
    ours.train()


ENCODERS = {
    "bert": {},
    "roberta": {"pad_token_id": 0},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 0},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"pad_token_id": 0, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_distils(tmp_path, kind):
    common = {key: value for key, value in tiny.config().to_dict().items() if key in COMMON_FIELDS}
    teacher = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(kind, **{**common, **ENCODERS[kind]}))
    ours = trainer(tmp_path, teacher=teacher, pooling="tokens:4", max_steps=2)
    ours.train()
    logs = ours.state.log_history
    assert all(math.isfinite(logs[i][name]) for i in (0, 1) for name in ("task", "itrd/correlation", "kd"))
    with torch.no_grad():
        batch = tiny.collate(list(tiny.rows(4)))
        deep = accepted_inputs(teacher, batch)
        hidden = teacher(**deep, output_hidden_states=True).hidden_states
    seen = ours.teacher_extractor(teacher, batch)[1].features
    expected = ours.teacher_extractor.pooling([hidden[2], hidden[4]], batch)  # the last one after any final norm
    assert torch.equal(seen[0], expected[0]) and torch.equal(seen[1], expected[1])


def test_a_last_batch_of_one_row_trains_on(tmp_path):
    ours = trainer(tmp_path, data=tiny.rows(17), max_steps=-1, num_train_epochs=2)
    ours.train()
    last = [log for log in ours.state.log_history if "loss" in log][2]
    assert last["itrd/correlation"] == 0 and math.isfinite(last["loss"])
    assert all(value.isfinite().all() for value in weights(ours).values())


def test_activation_checkpointing_gives_the_same_weights(tmp_path):
    ends, calls = [], []
    for on in (False, True):
        ours = trainer(tmp_path, activation_checkpointing=on)
        calls.append(0)

        def count(*args):
            calls[-1] += 1

        ours.student.bert.encoder.layer[0].attention.self.register_forward_hook(count)
        ours.train()
        ends.append(weights(ours))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
    assert calls[1] == 2 * calls[0] > 0  # each step computes the layer once more


def test_without_a_teacher_it_fine_tunes(tmp_path):
    args = ITRDArguments(str(tmp_path), max_steps=2, save_strategy="no", disable_tqdm=True, use_cpu=True)
    ours = ITRDTrainer(model=tiny.bert(), args=args, train_dataset=tiny.rows(), data_collator=tiny.collate)
    ours.train()
    ours.save_model()
    assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / SIDECAR).exists()


def test_losses_do_not_change_torch_s_random_state(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    teacher = tiny.bert()
    torch.manual_seed(5)
    from itrd_nlp.distillation.distiller import build_distiller

    probe = tiny.collate(list(tiny.rows(2)))
    student = student_from_teacher(teacher, "even:2", verbose=False)
    build_distiller(student, teacher, probe, losses=BOTH)
    assert torch.equal(torch.rand(3), expected)


def wrong(tmp_path, match, **changes):
    with pytest.raises(UserError, match=match) as error:
        trainer(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_wrong_input_is_one_line(tmp_path):
    wrong(tmp_path, "vocabulary has 60 tokens, the student's 61", student=tiny.bert(vocab_size=61))
    wrong(tmp_path, "same heads", student=tiny.bert("classes"))
    teacher, student = tiny.bert(), tiny.bert(layers=1)
    student.bert.embeddings = teacher.bert.embeddings
    wrong(tmp_path, "student and teacher share weights", teacher=teacher, student=student)
    wrong(tmp_path, "student and teacher share weights", teacher=teacher, student=teacher)
    tuples, student = tiny.bert(), tiny.bert(layers=1)
    tuples.config.return_dict = False
    wrong(tmp_path, "BertForQuestionAnswering returns tuples", teacher=tuples, student=student)
    wrong(tmp_path, "train_dataset is empty", data=tiny.rows(0))
    wrong(tmp_path, "no labels: .*set --task_weight 0", data=tiny.rows(labels=False))
    wrong(tmp_path, "need at least 2 samples", per_device_train_batch_size=1)
    wrong(tmp_path, "layer_map has the pair", layer_map=[[9, 1]])
    wrong(tmp_path, "pooling \"max\"|pooling 'max'", pooling="max")
    wrong(tmp_path, "did you mean 'kd'", losses={"kdd": {}})
    data = tiny.rows()
    small = trainer(tmp_path, tokens_per_batch=31)  # texts of up to 16 tokens
    with pytest.raises(UserError, match="tokens_per_batch 31 with pooling 'mean'.*raise it to 128"):
        small.train()
    unknown = trainer(tmp_path, tokens_per_batch=100, data=list(tiny.rows()))
    with pytest.raises(UserError, match="tokens_per_batch 100: the training data has no column 'length'"):
        unknown.train()
    too_high = data.map(lambda row: {"input_ids": [x + 60 for x in row["input_ids"]]})
    wrong(tmp_path, r"token id \d+, BertForQuestionAnswering knows ids below 60", data=too_high)


@pytest.mark.parametrize("name", ["itrd", "srd", "wcord"])
def test_few_samples_for_statistics_give_a_warning_and_one_is_refused(tmp_path, capsys, name):
    small = {"wcord": {"dim": 8, "negatives": 32}}.get(name, {})
    options = {"losses": {name: small}, "layer_map": "last"}
    trainer(tmp_path, **options, per_device_train_batch_size=8)
    assert "[statistics]" not in capsys.readouterr().err
    trainer(tmp_path, **options, per_device_train_batch_size=4)
    assert "[statistics] per_device_train_batch_size 4 with pooling 'mean'" in capsys.readouterr().err
    wrong(tmp_path, "need at least 2 samples", **options, per_device_train_batch_size=1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_student_in_half_precision_is_refused(tmp_path, dtype):
    student = tiny.bert(layers=2, seed=3).to(getattr(torch, dtype))
    words = f"the student's weights are {dtype}: expected float32.*call student.float\\(\\)$"
    wrong(tmp_path, words, student=student)
    with pytest.raises(UserError, match=words):
        ITRDTrainer(model=student, args=ITRDArguments(str(tmp_path), use_cpu=True), train_dataset=tiny.rows(4))
    trainer(tmp_path, student=student.float())


def test_frozen_weights_may_be_in_half_precision_and_so_may_those_that_are_sharded(tmp_path, monkeypatch):
    student = tiny.bert(layers=2)
    plain = SimpleNamespace(deepspeed_plugin=None, fsdp=None, mixed_precision="bf16")
    student.bert.embeddings.bfloat16().requires_grad_(False)
    check_precision(student, plain)
    student.bfloat16()
    check_precision(student, SimpleNamespace(**{**vars(plain), "deepspeed_plugin": "zero2"}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_precision(student, plain)
    with pytest.raises(UserError, match="the student's weights are bfloat16"):
        check_precision(student, SimpleNamespace(**{**vars(plain), "mixed_precision": "no"}))


def test_a_temperature_of_other_weights_is_not_the_students(tmp_path):
    teacher = tiny.bert("classes", calibration_temperature=7.5)
    assert not hasattr(student_from_teacher(teacher, "first:2", verbose=False).config, "calibration_temperature")
    for student in (teacher, tiny.bert("classes", layers=2, calibration_temperature=3.0)):  # fine-tuned, and distilled
        made = trainer(tmp_path, teacher=teacher, student=copy.deepcopy(student), head="classes", max_steps=1)
        made.train()
        assert not hasattr(made.student.config, "calibration_temperature")
    assert teacher.config.calibration_temperature == 7.5


def test_a_teacher_on_several_devices_is_refused(tmp_path):
    teacher = tiny.bert()
    teacher.qa_outputs.to("meta")
    with pytest.raises(UserError, match="lies on cpu, meta: expected one device"):
        trainer(tmp_path, teacher=teacher, student=tiny.bert(layers=2))


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "ZeRO-3"),
        ({"losses": {"minilmv2": {}}, "torch_compile": True}, "torch_compile with minilmv2"),
        (
            {
                "losses": {"minilmv2": {}},
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": True},
            },
            "minilmv2 with reentrant checkpointing: .* no gradient there",
        ),
        (
            {
                "world_size": 2,
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": True},
            },
            "reentrant checkpointing on several processes",
        ),
        (
            {
                "deepspeed_plugin": SimpleNamespace(zero_stage=2, deepspeed_config={"optimizer": {}}),
                "projector_learning_rate": 1e-3,
            },
            "projector_learning_rate with the optimizer of a DeepSpeed file",
        ),
        (
            {
                "deepspeed_plugin": SimpleNamespace(zero_stage=2, deepspeed_config={"scheduler": {}}),
                "lr_milestones": [1.0],
            },
            "lr_milestones with the scheduler of a DeepSpeed file",
        ),
        (
            {"losses": {"crd": {}}, "world_size": 2, "train_sampling_strategy": "batch_rebalance"},
            "batch_rebalance with crd on 2 processes: a memory bank",
        ),
        (
            {"losses": {"crd": {}}, "world_size": 2, "accelerator_config": AcceleratorConfig(even_batches=False)},
            "even_batches false with crd on 2 processes",
        ),
        (
            {
                "per_device_train_batch_size": 4,
                "world_size": 4,
                "accelerator_config": AcceleratorConfig(split_batches=True),
            },
            "per_device_train_batch_size 4 with pooling 'mean': the statistics need at least 2 samples",
        ),
    ],
    ids=str,
)
def test_what_only_large_machines_meet_is_refused(tmp_path, changes, words, monkeypatch):
    args = ITRDArguments(str(tmp_path), use_cpu=True)
    changes = dict(changes)
    monkeypatch.setattr(ITRDArguments, "world_size", changes.pop("world_size", 1))
    for name, value in changes.items():
        setattr(args, name, value)
    with pytest.raises(UserError, match=words):
        check_batches(args, distils=True)
        check_activation_checkpointing(tiny.bert(layers=1), args)


def test_trackers_do_not_upload_arguments(tmp_path, monkeypatch):
    args = ITRDArguments(str(tmp_path), use_cpu=True, report_to="none")
    args.report_to = ["wandb"]
    check_options({}, args)
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    with pytest.raises(UserError, match="WANDB_LOG_MODEL with report_to wandb would upload"):
        check_options({}, args)
    args.report_to = []
    check_options({}, args)


def test_fsdp_finds_the_layers_of_the_student(tmp_path):
    distiller = trainer(tmp_path).distiller
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(distiller)
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {type(distiller.student.bert.encoder.layer[0])}
    tied = Distiller(BertForMaskedLM(tiny.config(layers=1)))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_normalisations_of_images_are_not_decayed_either(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    ours = trainer(tmp_path)
    assert ours.get_decay_parameter_names(module) == ["0.weight", "3.weight"]
    ours.args.decay_all = True
    assert len(ours.get_decay_parameter_names(module)) == 10


def test_an_optimizer_of_the_user_s_brings_its_rates_and_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    args = SimpleNamespace(projector_learning_rate=1e-3, lr_milestones=None)
    with pytest.raises(UserError, match="projector_learning_rate with optimizers"):
        check_optimizers((optimizer, None), args, torch.nn.Module())
    args = SimpleNamespace(projector_learning_rate=None, lr_milestones=[0.5])
    with pytest.raises(UserError, match="lr_milestones with a scheduler in optimizers"):
        check_optimizers((optimizer, "a schedule"), args, torch.nn.Module())


def test_a_teacher_in_half_precision_teaches(tmp_path):
    ours = trainer(tmp_path, teacher=tiny.bert().bfloat16(), student=tiny.bert(layers=2, seed=3))
    ours.train()
    assert {weight.dtype for weight in ours.teacher.parameters()} == {torch.bfloat16}
    assert math.isfinite(ours.state.log_history[0]["itrd/correlation"])


@pytest.mark.parametrize("distils", [True, False])
def test_a_batch_without_a_label_that_counts_adds_nothing(tmp_path, distils):
    """As of sentences without a token: cross entropy over no label is 0 / 0."""
    data = tiny.rows(16, head="classes")
    labels = [-100] * 8 + data["labels"][8:]
    data = data.remove_columns("labels").add_column("labels", labels)
    options = {"train_sampling_strategy": "sequential", "max_steps": 2, "losses": {"kd": {}}}
    ours = trainer(tmp_path, head="classes", data=data, student=tiny.bert("classes", layers=2, seed=3), **options)
    ours.distils = distils
    ours.train()
    logs = ours.state.log_history
    if distils:
        assert logs[0]["task"] == 0 and logs[0]["loss"] == logs[0]["kd"] > 0 and logs[1]["task"] > 0
    else:
        assert logs[0]["loss"] == 0 < logs[1]["loss"]


@pytest.mark.parametrize(
    "changes,words",
    [
        (
            {"data": tiny.rows(5), "dataloader_drop_last": True},
            "no batch in an epoch: 5 training examples, batches of 8",
        ),
        ({"data": tiny.rows(5), "dataloader_drop_last": True, "max_steps": -1}, "no batch in an epoch: .*drop_last"),
        ({"data": Stream([])}, "train_dataset is empty"),
        ({"data": Stream(list(tiny.rows(2)), once=True), "accelerator_config": AS_IT_IS}, "no step was made"),
        (
            {"data": Stream(list(tiny.rows(2))), "accelerator_config": AS_IT_IS, "lr_milestones": [1.0]},
            "lr_milestones with streamed data",
        ),
    ],
)
def test_a_training_without_a_step_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        trainer(tmp_path, train_sampling_strategy="random", **changes).train()
    assert "\n" not in str(error.value)


def test_no_steps_at_all_are_refused_and_none_left_is_fine(tmp_path):
    with pytest.raises(UserError, match="max_steps is 0: expected 1 or more"):
        ITRDArguments(str(tmp_path), max_steps=0)
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path, **options)
    whole.train()
    again = trainer(tmp_path, **options)
    assert again.train(resume_from_checkpoint=True).global_step == 2
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(again).items())


def test_neftune_is_noise_on_the_students_embeddings_while_it_trains(tmp_path):
    ours, plain = trainer(tmp_path, neftune_noise_alpha=5.0), trainer(tmp_path)
    for each in (ours, plain):
        each.train()
    first = [each.state.log_history[0] for each in (ours, plain)]
    assert first[0]["task"] != first[1]["task"] and first[0]["kd"] != first[1]["kd"]
    assert not ours.student.get_input_embeddings()._forward_hooks


def digest(ours):
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights(ours).values())).hexdigest()


def on_a_rank(folder):
    students = {"teacher": tiny.bert(width=48), "student": tiny.bert(layers=2, seed=3)}
    saves = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    ours = trainer(folder, **students, per_device_train_batch_size=4, **saves)
    before = weights(ours)
    ours.train()
    moved = all(not torch.equal(before[key], value) for key, value in weights(ours).items())
    return [ours.args.world_size, digest(ours), moved, ours.state.log_history[0]["loss"]]


def test_two_gloo_ranks_end_with_equal_weights(tmp_path):
    ranks = on_ranks(on_a_rank, tmp_path)
    assert ranks[0] == ranks[1] and ranks[0][0] == 2 and ranks[0][2]


def test_an_evaluation_on_the_training_data_is_not_taken_for_the_end_of_training(tmp_path):
    """Its log has a `train_loss`, too."""

    class Overfits(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                made.nonfinite.skipped = made._means.run_skipped = 1
                losses.extend(made.evaluate(tiny.rows(8), metric_key_prefix=p)[f"{p}_loss"] for p in ("train", "eval"))
                made.nonfinite.skipped = made._means.run_skipped = 0

    losses = []
    made = trainer(tmp_path, callbacks=[Overfits()], logging_steps=4, nonfinite="skip")
    made.train()
    logs = made.state.log_history
    assert [log["step"] for log in logs if "kd" in log] == [4]
    assert losses[0] == losses[1]
