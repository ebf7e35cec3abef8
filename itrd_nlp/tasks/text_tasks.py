"""The tasks on rows of text, by the names of ``--task``."""

from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.reranking.task import RerankingTask
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask, RegressionTask
from itrd_nlp.tasks.token_classification import TaggingTask

_ALL: tuple[type[RowsTask], ...] = (
    *(ClassificationTask, MultilabelTask, RegressionTask),
    *(TaggingTask, EmbeddingTask, RerankingTask),
)
TEXT_TASKS = {task.name: task for task in _ALL}
