"""Publishing a student on the Hub: its own files and its card, and nothing else of its folder."""

import dataclasses
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import huggingface_hub
from huggingface_hub.errors import HTTPError
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy, has_length
from transformers.utils.hub import hf_api

from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import MARKER
from itrd_nlp.training.fingerprint import training_values
from itrd_nlp.training.model_card import CARD, write_card
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.hashing import json_values
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.modeling import parameter_count, size_mib

logger = logging.getLogger(__name__)

# what save_pretrained writes of a model, a tokenizer and an image processor: safetensors, JSON and vocabularies
PUBLISHED = (
    *(CARD, "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "*.model"),
    *("chat_template.jinja", "dict.txt", "emoji.json", "byte_maps.json", "normalizer.json", "prophetnet.tokenizer"),
    *("entity_vocab.json", "word_shape.json", "word_pronunciation.json", "*.spm", "vocab-*.json", "target_vocab.json"),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),  # of a sentence encoder
)
REFUSED = (OSError, ValueError, RuntimeError, HTTPError)  # by the Hub, or on the way to it
PATIENCE = 300.0  # seconds to wait at the end for uploads: less than the others wait in a collective (NCCL: 600)
PENDING = ".push-"  # folders of what is being uploaded; a kill may leave one behind


def make_repo(args: TrainingArguments, token: str | None = None, private: bool | None = None) -> str:
    """Make the repository that the arguments name, unless it is there; returns its whole id, ``user/name``.

    Raises:
        UserError: no such user, no token that may write, or no way to the Hub.
    """
    token = token or args.hub_token
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    private = args.hub_private_repo if private is None else private
    try:
        return hf_api().create_repo(name, token=token, private=private, exist_ok=True).repo_id
    except REFUSED as error:
        raise UserError(
            f"hub_model_id {name!r}: the Hub does not take it ({_without_tokens(error, token)}): expected a name that "
            "you may write to; log in with `hf auth login`, or leave out --push_to_hub"
        ) from None


def with_repo(args: ITRDArguments) -> ITRDArguments:
    """The arguments of a run with the whole id of its repository, which is made; named after ``output_dir`` if need be.

    Raises:
        UserError: as :func:`make_repo`, before anything is trained.
    """
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
    except REFUSED as error:
        raise UserError(
            f"{folder} could not be pushed to {repo} ({_without_tokens(error, options['token'])}): it is whole here; "
            "the same again tries it again"
        ) from None


def published(folder: Path) -> list[str]:
    """The files of a folder that ``PUBLISHED`` matches, their paths below it."""
    found = {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _in_background(work: Callable[[], Any], after: Sequence["Future[Any]"]) -> "Future[Any]":
    """Do some work once other work has ended; where it hangs, the process still ends, unlike with the Hub's own."""
    future: Future[Any] = Future()

    def do() -> None:
        wait(after)
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    Thread(target=do, daemon=True).start()
    return future


def _linked(folder: Path, names: Sequence[str]) -> Path:
    """The files of a checkpoint in a folder of their own, which stays when the checkpoint is removed; no bytes move."""
    aside = folder.parent / f"{PENDING}{uuid4().hex}"
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, aside / name)
        except OSError:  # a file system without links
            shutil.copy2(folder / name, aside / name)
    return aside


def _without_tokens(error: BaseException, token: str | None) -> str:
    text = str(error) or type(error).__name__
    for secret in (token, huggingface_hub.get_token()):
        text = text.replace(secret.strip(), "<token>") if secret and secret.strip() else text
    return first_line(ValueError(text))  # cut last: half a token is one too


class HubTrainer(Trainer):
    """A ``transformers.Trainer`` that publishes a student as :func:`publish` does, with a card of its own.

    Trainer's own way uploads all of ``output_dir`` with a pickle of the arguments, the token among them.
    """

    args: Any
    sources: Mapping[str, str] = {}  # role -> the models that the student comes from
    uploads: Sequence["Future[Any]"] = ()  # of checkpoints, see `_unfinished`

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Trainer's; raises :class:`UserError` where the Hub does not take the name."""
        if self.is_world_process_zero():
            self.hub_model_id = make_repo(self.args, token, private)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of what this trainer has trained and last evaluated; the arguments are Trainer's.

        A card that was changed by hand stays. A whole run has more to tell, see :func:`itrd_nlp.experiments.run.run`.
        """
        asked = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        if not self.is_world_process_zero():
            return
        tags, tasks, hub_data = (_list(asked.get(key)) for key in ("tags", "tasks", "dataset_tags"))
        stated = {key: asked.get(key) for key in ("language", "license")}
        stated |= {"datasets": hub_data, "tags": tags, "pipeline_tag": next(iter(tasks), None)}
        record = self._record(asked.get("model_name"))
        if data := [*_list(asked.get("dataset")), *_list(asked.get("dataset_args"))] or hub_data:
            record.arguments["dataset"] = " ".join(data)
        start = asked.get("finetuned_from")
        write_card(
            Path(self.args.output_dir),
            self.accelerator.unwrap_model(self.model).student,
            record,
            where=self.hub_model_id or asked.get("model_name"),
            sources={**self.sources, **({"started from": start} if start else {})},
            stated={key: value for key, value in stated.items() if value},
        )

    def _record(self, name: str | None) -> Record:
        """What a trainer knows by itself of the run that it is part of."""
        student = self.accelerator.unwrap_model(self.model).student
        # told by its runtime, as some models have no eval_loss
        last: dict[str, Any] = next((log for log in reversed(self.state.log_history) if "eval_runtime" in log), {})
        timings = {"eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
        scores = {k.removeprefix("eval_"): v for k, v in last.items() if k.startswith("eval_") and k not in timings}
        asked = json_values(training_values(self.args))
        return Record(
            name or "ITRDTrainer",
            asked if self.sources.get("teacher") else {**asked, "losses": {}},
            self.args.seed,
            metrics={"student": scores} if scores else {},
            metric_names=[*scores],
            parameters={"student": parameter_count(student)},
            size_mib={"student": size_mib(student)},
            data={"training examples": len(self.train_dataset)} if has_length(self.train_dataset) else {},
            **provenance(self.args.device),
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Trainer's: save the student, write its card with ``kwargs``, and upload both, nothing else of the folder."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        options: dict[str, Any] = {"token": token, "revision": revision, "run_as_future": not blocking}
        message = commit_message or "End of training"
        return publish(Path(self.args.output_dir), self.hub_model_id, self.args, message, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer pushes here, before a checkpoint is complete: :meth:`push_checkpoint` does it afterwards."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Start to upload a complete checkpoint: its student, and all of it where ``hub_strategy`` asks for that.

        As in Trainer, one is left out while an earlier one is on its way, unless ``hub_always_push`` is set: then they
        queue. Training never waits for them.
        """
        strategy = self.args.hub_strategy
        if not self.args.push_to_hub or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        before = self._unfinished()
        if before and not self.args.hub_always_push:
            return
        if not before:
            for left in checkpoint.parent.glob(f"{PENDING}*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        paths = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        path, student = paths.get(strategy), published(checkpoint)  # no path: the student alone
        names = [*read_json(checkpoint / MARKER), MARKER] if path else student
        aside = _linked(checkpoint, names)
        message = f"Training in progress, step {self.state.global_step}"
        target = {"repo_id": self.hub_model_id, "token": self.args.hub_token, "revision": self.args.hub_revision}
        send = partial(hf_api().upload_folder, folder_path=aside, **target)

        def upload() -> None:
            try:
                send(commit_message=message, allow_patterns=student)
                if path:
                    send(commit_message=f"{message}, checkpoint", allow_patterns=names, path_in_repo=path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

        self.uploads = [*before, _in_background(upload, before)]

    def _unfinished(self) -> Sequence["Future[Any]"]:
        """The uploads that are on their way; of those that have ended, failures are told: they are no errors."""
        for job in self.uploads:
            if job.done() and (error := job.exception()):
                logger.warning(f"[push] not uploaded: {_without_tokens(error, self.args.hub_token)}")
        self.uploads = [job for job in self.uploads if not job.done()]
        return self.uploads

    def _finish_current_push(self) -> None:
        """Trainer's, which waits without end: at most ``PATIENCE`` seconds, as other ranks wait for this one."""
        if not (going := self._unfinished()):
            return
        logger.info(f"[push] waiting for {len(going)} upload(s), {PATIENCE:.0f} s at most")
        wait(going, timeout=PATIENCE)
        if left := self._unfinished():
            logger.warning(f"[push] {len(left)} upload(s) not waited for any longer: what is saved here is whole")


def _list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
