"""The rules of a fair comparison: records in one table have the same teacher, student, data and budget."""

from collections.abc import Sequence

from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError

# equal in a fair comparison, like output_folder.SAME_RUN; a method has its own learning rate and schedule
SAME_TRAINING = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "tokens_per_batch",
    "documents_per_query",
    "bf16",
    "fp16",
    "load_best_model_at_end",
)
SELECTION = (  # equal where the best checkpoint is loaded at the end
    *("metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps", "eval_delay"),
    *("save_strategy", "save_steps"),
)
DECIDING = ("teacher", "student", "training data")  # digests that a run's fingerprint has, too
DIGESTS = (*DECIDING, "validation data")  # of a record


def budget_arguments(selects: bool) -> tuple[str, ...]:
    """The training arguments that a fair comparison keeps equal; ``selects``: where the best checkpoint is loaded."""
    return (*SAME_TRAINING, *(SELECTION if selects else ()))


def check_same(records: Sequence[Record], budget: bool = True) -> None:
    """Raise :class:`UserError` where teachers, students, data or, with ``budget``, budgets differ between records."""
    first_of = {record.seed: record for record in reversed(records)}  # the seed initialises a new head
    for record in records:
        pairs = [(what, first_of[record.seed] if what == "student" else records[0]) for what in DIGESTS]
        different = [what for what, first in pairs if record.digests.get(what) != first.digests.get(what)]
        config, first_config = (each.digests.get("student's config") for each in (record, first_of[record.seed]))
        if config and first_config and config != first_config:  # which records of earlier versions lack
            different.append("student's config")
        selects = bool(records[0].arguments.get("load_best_model_at_end"))
        for name in (*budget_arguments(selects), "world_size") if budget else ():
            if record.arguments.get(name) != records[0].arguments.get(name):
                different.append(name)
        if different:
            raise UserError(
                f"{records[0].recipe} and {record.recipe}, seed {record.seed}, were not made with the same "
                f"{' and '.join(different)}: expected one for all; run them again together, or add --unfair"
            )
