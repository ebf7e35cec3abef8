"""What a mistyped argument may have meant: names of other tools' scripts first, then the nearest of ours."""

from collections.abc import Iterable

from itrd_nlp.utils.errors import nearest

# what arguments are called in the examples of transformers, in TextBrewer, timm, ITRD's and RepDistiller's code,
# and in scripts of every day -> ours
OTHER_NAMES = {
    "accum_iter": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "alpha": "losses.itrd.alpha",
    "amp": "bf16",
    "batch_size": "per_device_train_batch_size",
    "bert_model": "teacher",
    "beta_corr": "losses.itrd.beta_corr",
    "beta_mi": "losses.itrd.beta_mi",
    "bs": "per_device_train_batch_size",
    "clip_grad": "max_grad_norm",
    "dataset_config_name": "dataset_config",
    "dataset_name": "dataset",
    "dev_file": "validation_file",
    "device": "use_cpu",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "eval_file": "validation_file",
    "evaluation_strategy": "eval_strategy",
    "fp32": "bf16",
    "grad_accum": "gradient_accumulation_steps",
    "grad_clip": "max_grad_norm",
    "hidden_size": "student.hidden_size",
    "label_column_name": "label_column",
    "lambda_corr": "losses.itrd.beta_corr",
    "lambda_mutual": "losses.itrd.beta_mi",
    "layers": "student.layers",
    "lr": "learning_rate",
    "lr_decay_epochs": "lr_milestones",
    "lr_scheduler": "lr_scheduler_type",
    "max_epochs": "num_train_epochs",
    "max_len": "max_length",
    "max_query_length": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "max_source_length": "max_length",
    "milestones": "lr_milestones",
    "model": "teacher",
    "model_name": "teacher",
    "model_name_or_path": "teacher",
    "model_s": "student",
    "model_t": "teacher",
    "n_best_size": "n_best",
    "no_cuda": "use_cpu",
    "null_score_diff_threshold": "null_threshold",
    "num_epochs": "num_train_epochs",
    "num_layers": "student.layers",
    "num_workers": "dataloader_num_workers",
    "optimizer": "optim",
    "out_dir": "output_dir",
    "output": "output_dir",
    "overwrite_output_dir": "overwrite",
    "path_t": "teacher",
    "predict_file": "validation_file",
    "preprocessing_num_workers": "num_proc",
    "pretrained_model_name_or_path": "teacher",
    "save_dir": "output_dir",
    "scheduler": "lr_scheduler_type",
    "student_layers": "student.layers",
    "student_model": "student",
    "student_model_name_or_path": "student",
    "student_name_or_path": "student",
    "task_name": "task",
    "teacher_model": "teacher",
    "teacher_model_name_or_path": "teacher",
    "teacher_name_or_path": "teacher",
    "temp": "losses.kd.temperature",
    "temperature": "losses.kd.temperature",
    "test_file": "validation_file",
    "text_column_name": "text_column",
    "tokenizer_name": "tokenizer",
    "tokenizer_name_or_path": "tokenizer",
    "train_batch_size": "per_device_train_batch_size",
    "train_data": "train_file",
    "valid_file": "validation_file",
    "validation_data": "validation_file",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}


def suggest(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for an argument that is not known, as :func:`~itrd_nlp.utils.errors.nearest` puts it.

    Example:
        >>> suggest("max-seq-length", ["max_length", "max_answer_length"])
        "; did you mean 'max_length'?"
    """
    names = [*known]
    meant = OTHER_NAMES.get(given.lower().replace("-", "_"))
    if meant is not None and meant.partition(".")[0] in names:
        return f"; did you mean {meant!r}?"
    return nearest(given, names)
