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
DIGESTS = ("teacher", "student", "training data", "validation data")  # of a record


def check_same(records: Sequence[Record], budget: bool = True) -> None:
    """Raise :class:`UserError` where teachers, students, data or, with ``budget``, budgets differ between records."""
    first_of = {record.seed: record for record in reversed(records)}  # the seed initialises a new head
    for record in records:
        pairs = [(what, first_of[record.seed] if what == "student" else records[0]) for what in DIGESTS]
        different = [what for what, first in pairs if record.digests.get(what) != first.digests.get(what)]
        for name in (*SAME_TRAINING, "world_size") if budget else ():
            if record.arguments.get(name) != records[0].arguments.get(name):
                different.append(name)
        if different:
            raise UserError(
                f"{records[0].recipe} and {record.recipe}, seed {record.seed}, were not made with the same "
                f"{' and '.join(different)}: expected one for all; run them again together, or add --unfair"
            )
