"""What a mistyped argument may have meant: names of other tools' scripts first, then the nearest of this package's."""

from collections.abc import Iterable

from itrd_nlp.utils.errors import nearest

# our argument -> its names in transformers' examples, in TextBrewer, timm, ITRD's and RepDistiller's code, and in
# everyday scripts; without those that `nearest` leads from
ALIASES = {
    "bf16": "amp fp32",
    "dataloader_num_workers": "workers",
    "documents_per_query": "group_size list_size max_group_size num_negatives train_group_size",
    "gradient_accumulation_steps": "accum_iter accumulation_steps grad_accum",
    "learning_rate": "lr",
    "losses.itrd.alpha": "alpha",
    "losses.itrd.beta_corr": "beta_corr lambda_corr",
    "losses.itrd.beta_mi": "beta_mi lambda_mutual",
    "losses.kd.temperature": "temp temperature",
    "lr_milestones": "lr_decay_epochs",
    "lr_scheduler_type": "lr_scheduler scheduler",
    "max_grad_norm": "clip_grad grad_clip",
    "max_length": "max_query_length max_seq_len max_seq_length max_source_length",
    "n_best": "n_best_size",
    "num_proc": "preprocessing_num_workers",
    "num_train_epochs": "max_epochs",
    "output_dir": "save_dir",
    "overwrite": "overwrite_output_dir",
    "per_device_train_batch_size": "batch_size bs",
    "student": "model_s student_model_name_or_path student_name_or_path",
    "student.hidden_size": "hidden_size",
    "student.intermediate_size": "intermediate_size",
    "student.layers": "layers num_layers student_layers",
    "student.vocabulary": "vocab_size vocabulary vocabulary_size",
    "task": "task_name",
    "teacher": (
        "bert_model model model_name model_name_or_path model_t path_t pretrained_model_name_or_path "
        "teacher_model_name_or_path teacher_name_or_path"
    ),
    "text_column": "text_column_name",
    "tokenizer": "tokenizer_name_or_path",
    "train_file": "train_data",
    "use_cpu": "device no_cuda",
    "validation_file": "dev_file eval_file predict_file test_file",
    "weight_decay": "wd",
}
NAMES_OF_OTHER_TOOLS = {alias: name for name, aliases in ALIASES.items() for alias in aliases.split()}


def suggest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for an unknown argument; see :func:`~itrd_nlp.utils.errors.nearest`.

    Example:
        >>> suggest("max-seq-length", ["max_length", "max_answer_length"])
        "; did you mean 'max_length'?"
    """
    names = [*known]
    known_name = NAMES_OF_OTHER_TOOLS.get(word.lower().replace("-", "_"))
    if known_name is not None and known_name.partition(".")[0] in names:
        return f"; did you mean {known_name!r}?"
    return nearest(word, names)
