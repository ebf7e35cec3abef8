"""NDCG@10, MRR@10 and MAP by query, computed by scikit-learn from one ranking without ties."""

from __future__ import annotations

from typing import Any

import numpy as np

from itrd_nlp.utils.errors import needing

TOP = 10  # documents that NDCG and MRR look at


def need_sklearn() -> Any:
    """Import scikit-learn's metrics; raise :class:`UserError` where it is not installed."""
    with needing("task reranking needs scikit-learn", "reranking"):
        from sklearn import metrics
    return metrics


def ranking_scores(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, list[float]]:
    """Metrics of each query in percent, in the order of the groups' indices.

    Of documents with equal scores the least relevant one comes first: a model that scores all documents alike gains
    nothing from their order in a file, and no metric depends on that order. A document is relevant if its label is
    above 0. NDCG's gain is the label itself, as in trec_eval. Queries without a relevant document are left out: no
    ranking of theirs is better than another.

    Args:
        scores: (n,) of documents.
        labels: (n,) their relevance, 0 or more.
        groups: (n,) the index of each document's query.

    Returns:
        ``ndcg@10``, ``mrr@10`` and ``map``: one number for each query that has a relevant document.
    """
    metrics = need_sklearn()
    results: dict[str, list[float]] = {f"ndcg@{TOP}": [], f"mrr@{TOP}": [], "map": []}
    order = np.lexsort((labels, -scores, groups))
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    for ranked in np.split(labels[order], ends):
        if not (ranked > 0).any():
            continue
        # scikit-learn refuses a list of one document; an irrelevant one at the end changes no metric
        gains = np.append(ranked, 0.0)
        scores_by_rank = -np.arange(len(gains))
        first = int(np.argmax(gains > 0))
        values = (
            metrics.ndcg_score([gains], [scores_by_rank], k=TOP, ignore_ties=True),
            1 / (first + 1) if first < TOP else 0.0,  # scikit-learn has no reciprocal rank
            metrics.average_precision_score(gains > 0, scores_by_rank),
        )
        for name, value in zip(results, values, strict=True):
            results[name].append(100 * float(value))
    return results


def queries_without_relevant(labels: np.ndarray, groups: np.ndarray) -> int:
    """How many queries have no document with a label above 0."""
    return len(np.unique(groups)) - len(np.unique(groups[labels > 0]))
