"""Tiny models and data for the tests: seeded, no download."""

from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

VOCABULARY = 60


def config(layers: int = 4, width: int = 32, **changes: Any) -> BertConfig:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * width,
            "max_position_embeddings": 64,
            **dropout,
            **changes,
        }
    )


def bert(head: str = "qa", layers: int = 4, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    kinds = {"qa": BertForQuestionAnswering, "classes": BertForSequenceClassification}
    return kinds[head](config(layers, **changes))


def rows(n: int = 64, head: str = "qa", labels: bool = True, seed: int = 0, equal_length: bool = False) -> Dataset:
    """Random token ids of 6 to 16 tokens, ready for the collator below."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        length = 12 if equal_length else int(torch.randint(6, 17, (1,), generator=draw))
        ids = torch.randint(5, VOCABULARY, (length,), generator=draw)
        ids[0], ids[-1] = 1, 2
        row: dict[str, Any] = {
            "input_ids": ids.tolist(),
            "attention_mask": [1] * length,
            "token_type_ids": [0] * length,
            "special_tokens_mask": [1, *[0] * (length - 2), 1],
            "length": length,
        }
        if labels and head == "qa":
            start, end = sorted(torch.randint(1, length - 1, (2,), generator=draw).tolist())
            row |= {"start_positions": start, "end_positions": end}
        elif labels:
            row["labels"] = int(ids[1]) % 2
        made.append(row)
    return Dataset.from_list(made)


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest row."""
    longest = max(len(row["input_ids"]) for row in batch)
    padding = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    made = {}
    for key in batch[0]:
        if key in padding:
            made[key] = torch.tensor([row[key] + [padding[key]] * (longest - len(row[key])) for row in batch])
        elif key != "length":
            made[key] = torch.tensor([row[key] for row in batch])
    return made
