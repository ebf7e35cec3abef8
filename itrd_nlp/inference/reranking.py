"""Documents in the order of their relevance for a query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from itrd_nlp.inference.texts import TextModel
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.unicode import check_filled


@dataclass(frozen=True)
class RankedDocument:
    """A document with its score."""

    index: int  # in the list of documents
    score: float  # the higher, the more relevant
    document: str
    probability: float | None = None  # that it is relevant; None of a model without a temperature in its config


def rerank(
    model: str | Path | TextModel, query: str, documents: Iterable[str], *, max_length: int | None = None
) -> list[RankedDocument]:
    """Order documents by how relevant they are for a query.

    Args:
        model: folder or Hub id of a cross-encoder, exported or not: a classifier of texts with one output, or with two
            classes, whose log-odds are the score; or ``TextModel(source, reranks=True)``, which is
            loaded once for many queries.
        query: never cut.
        documents: each is cut to what the query leaves of ``max_length``.
        max_length: tokens of a query and a document; None: as for :class:`itrd_nlp.inference.texts.TextModel`.

    Returns:
        All documents, the most relevant one first; of equal scores in the order given. A score is the logit itself,
        without a sigmoid; the probability is its sigmoid by the temperature in the model's config.

    Raises:
        UserError: no such model, one of another kind, a blank query or document, or a query that fills ``max_length``.
    """
    if isinstance(documents, str) or not isinstance(documents, Iterable):
        raise UserError(f"documents is {documents!r:.40}: expected a list of texts")
    documents = list(documents)
    check_filled("query", [query])
    check_filled("document", documents)
    if not isinstance(model, str | Path | TextModel):
        raise UserError(f"a model of type {type(model).__name__}: expected a folder, a Hub id or a TextModel")
    if not isinstance(model, TextModel):
        model = TextModel(str(model), max_length, reranks=True)
    elif model.task != "reranking" or max_length is not None:
        raise UserError(
            "a TextModel to rerank: expected TextModel(source, max_length, reranks=True), and no max_length"
        )
    if not documents:
        return []
    results = model.predict([[query] * len(documents), documents], progress=False)
    ranked = [
        RankedDocument(i, result["score"], text, result.get("probability"))
        for i, (result, text) in enumerate(zip(results, documents, strict=True))
    ]
    return sorted(ranked, key=lambda each: -each.score)
