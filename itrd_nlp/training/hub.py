"""Uploads to the Hub: a student's own files and its card, and nothing else of its folder."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import huggingface_hub
from huggingface_hub.errors import HTTPError
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import hf_api

from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import MARKER
from itrd_nlp.training.model_card import CARD
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.io import read_json

# what save_pretrained writes of a model, a tokenizer and an image processor: safetensors, JSON and vocabularies
PUBLISHED = (
    *(CARD, "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "*.model"),
    *("chat_template.jinja", "dict.txt", "emoji.json", "byte_maps.json", "normalizer.json", "prophetnet.tokenizer"),
    *("entity_vocab.json", "word_shape.json", "word_pronunciation.json", "*.spm", "vocab-*.json", "target_vocab.json"),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),  # of a sentence encoder
    *("2_Dense/config.json", "2_Dense/model.safetensors"),
)
HUB_ERRORS = (OSError, ValueError, RuntimeError, HTTPError)  # of the Hub, or on the way to it
PENDING = ".push-"  # prefix of folders that are being uploaded; a kill may leave one behind


def make_repo(args: TrainingArguments, token: str | None = None, private: bool | None = None) -> str:
    """Make the repository that the arguments name, unless it exists; returns its full id, ``user/name``.

    Raises:
        UserError: no such user, no token that may write, or no way to the Hub.
    """
    token = token or args.hub_token
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    private = args.hub_private_repo if private is None else private
    try:
        return hf_api().create_repo(name, token=token, private=private, exist_ok=True).repo_id
    except HUB_ERRORS as error:
        raise UserError(
            f"hub_model_id {name!r}: the Hub does not take it ({without_tokens(error, token)}): expected a name that "
            "you may write to; log in with `hf auth login`, or leave out --push_to_hub"
        ) from None


def with_repo(args: ITRDArguments) -> ITRDArguments:
    """Make the repository of a run that pushes, before it trains; returns arguments that hold its full id."""
    if not args.push_to_hub or args.process_index:
        return args
    changes: dict[str, Any] = {"hub_model_id": make_repo(args)}
    return dataclasses.replace(args, **changes)


def publish(folder: Path, repo: str, args: TrainingArguments, message: str, **options: Any) -> Any:
    """Upload a student's own files.

    Args:
        options: of ``HfApi.upload_folder``; token and revision are those of the arguments where they are None.

    Raises:
        UserError: the upload failed.
    """
    options = {**options, "token": options.get("token") or args.hub_token}
    options["revision"] = options.get("revision") or args.hub_revision
    try:
        return hf_api().upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, allow_patterns=published(folder), **options
        )
    except HUB_ERRORS as error:
        raise UserError(
            f"{folder} could not be pushed to {repo} ({without_tokens(error, options['token'])}): it is complete "
            "here; run the same again to retry"
        ) from None


def published(folder: Path) -> list[str]:
    """The files of a folder that ``PUBLISHED`` matches, as paths below it."""
    paths = {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def start_upload(
    checkpoint: Path, repo: str, args: TrainingArguments, message: str, after: Sequence["Future[Any]"]
) -> "Future[Any]":
    """Start to upload a checkpoint's student, or all of it where ``hub_strategy`` asks, once ``after`` have ended."""
    if not after:
        for leftover in checkpoint.parent.glob(f"{PENDING}*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
    student = published(checkpoint)
    folders = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
    folder = folders.get(args.hub_strategy)  # in the repository; None: the student alone
    complete = [*read_json(checkpoint / MARKER), MARKER] if folder else student
    links = _link_files(checkpoint, complete)
    send = partial(
        hf_api().upload_folder, repo_id=repo, folder_path=links, token=args.hub_token, revision=args.hub_revision
    )

    def upload() -> None:
        try:
            send(commit_message=message, allow_patterns=student)
            if folder:
                send(commit_message=f"{message}, checkpoint", allow_patterns=complete, path_in_repo=folder)
        finally:
            shutil.rmtree(links, ignore_errors=True)

    return in_background(upload, after)


def in_background(work: Callable[[], Any], after: Sequence["Future[Any]"]) -> "Future[Any]":
    """Run ``work`` in a daemon thread once other work has ended: a hanging upload does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        wait(after)
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _link_files(folder: Path, names: Sequence[str]) -> Path:
    """Hard-link files of a checkpoint into a folder of their own, which outlives the checkpoint."""
    links = folder.parent / f"{PENDING}{uuid4().hex}"
    for name in names:
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, links / name)
        except OSError:  # a file system without links
            shutil.copy2(folder / name, links / name)
    return links


def without_tokens(error: BaseException, token: str | None) -> str:
    text = str(error) or type(error).__name__
    for secret in (token, huggingface_hub.get_token()):
        text = text.replace(secret.strip(), "<token>") if secret and secret.strip() else text
    return one_line(ValueError(text))  # cut last: half a token is a secret too
