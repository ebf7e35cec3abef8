"""Publishing a student on the Hub: its own files and its card, and nothing else of its folder."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import huggingface_hub
from huggingface_hub.errors import HTTPError
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy, has_length
from transformers.utils.hub import PushInProgress, hf_api

from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checkpoint import MARKER
from itrd_nlp.training.fingerprint import training_values
from itrd_nlp.training.lineage import CARD
from itrd_nlp.training.model_card import write_card
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.hashing import json_values
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.modeling import parameter_count, size_mib

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


def publish(
    folder: Path,
    repo: str,
    args: TrainingArguments,
    message: str,
    *,
    names: Sequence[str] | None = None,
    token: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> Any:
    """Upload a student's own files.

    Args:
        names: of the files, their paths below ``folder``; :func:`published` ones, by default.
        options: of ``HfApi.upload_folder``.

    Raises:
        UserError: the upload failed.
    """
    token = token or args.hub_token
    options = {"revision": revision or args.hub_revision, **options}
    try:
        return _upload(folder, repo, message, token, published(folder) if names is None else names, **options)
    except REFUSED as error:
        raise UserError(
            f"{folder} could not be pushed to {repo} ({_without_tokens(error, token)}): it is whole here; the same "
            "again tries it again"
        ) from None


def published(folder: Path) -> list[str]:
    """The files of a folder that ``PUBLISHED`` matches, their paths below it."""
    found = {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _upload(folder: Path, repo: str, message: str, token: str | None, names: Sequence[str], **options: Any) -> Any:
    return hf_api().upload_folder(
        repo_id=repo,
        folder_path=folder,
        commit_message=message,
        token=token,
        allow_patterns=list(names),
        **options,
    )


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
    push_in_progress: PushInProgress | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Trainer's; raises :class:`UserError` where the Hub does not take the name."""
        if self.is_world_process_zero():
            self.hub_model_id = make_repo(self.args, token, private)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of what this trainer has trained and last evaluated; the arguments are Trainer's.

        A card that was changed by hand stays. A whole run has more to tell, see :func:`itrd_nlp.experiments.run.run`.
        """
        if not self.is_world_process_zero():
            return
        stated: dict[str, Any] = {"language": language, "license": license, "datasets": _list(dataset_tags)}
        stated |= {"tags": _list(tags), "pipeline_tag": next(iter(_list(tasks)), None)}
        record = self._record(model_name)
        if named := [*_list(dataset), *_list(dataset_args)] or _list(dataset_tags):
            record.arguments["dataset"] = " ".join(named)
        sources = {**self.sources, **({"started from": finetuned_from} if finetuned_from else {})}
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        where = self.hub_model_id or model_name
        student = self.accelerator.unwrap_model(self.model).student
        kept = {key: value for key, value in stated.items() if value}
        write_card(folder, student, record, where=where, sources=sources, stated=kept)

    def _record(self, name: str | None) -> Record:
        """What a trainer knows by itself of the run that it is part of."""
        student = self.accelerator.unwrap_model(self.model).student
        evaluated = [log for log in self.state.log_history if "eval_runtime" in log]  # some models have no eval_loss
        timings = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        last = evaluated[-1] if evaluated else {}
        scores = {k.removeprefix("eval_"): v for k, v in last.items() if k.startswith("eval_") and k not in timings}
        asked = json_values(training_values(self.args))
        record = Record(name or "ITRDTrainer", asked, self.args.seed, **provenance(self.args.device))
        if not self.sources.get("teacher"):
            record.arguments["losses"] = {}
        record.metrics, record.metric_names = ({"student": scores} if scores else {}), [*scores]
        record.parameters, record.size_mib = {"student": parameter_count(student)}, {"student": size_mib(student)}
        record.data = {"training examples": len(self.train_dataset)} if has_length(self.train_dataset) else {}
        return record

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
        """Trainer pushes here, before a checkpoint is whole: :meth:`push_checkpoint` does it afterwards."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Start to upload a sealed checkpoint: its student, and all of it where ``hub_strategy`` asks for that.

        As in Trainer, one is left out while an earlier one is on its way, unless ``hub_always_push`` is set: then they
        queue. Training never waits for them.
        """
        strategy = self.args.hub_strategy
        if not self.args.push_to_hub or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        before = self._pushes()
        if before and not self.args.hub_always_push:
            return
        if not before:
            for left in checkpoint.parent.glob(f"{PENDING}*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        student = published(checkpoint)
        whole: list[str] = []
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            whole = [*read_json(checkpoint / MARKER), MARKER]
        aside = _linked(checkpoint, sorted({*student, *whole}))
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
        message = f"Training in progress, step {self.state.global_step}"
        repo, token, options = str(self.hub_model_id), self.args.hub_token, {"revision": self.args.hub_revision}

        def upload() -> None:
            try:
                _upload(aside, repo, message, token, student, **options)
                if whole:
                    _upload(aside, repo, f"{message}, checkpoint", token, whole, path_in_repo=place, **options)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

        self.push_in_progress = PushInProgress([*before, _in_background(upload, before)])

    def _pushes(self) -> list["Future[Any]"]:
        """The uploads that are on their way; of those that have ended, failures are told: they are no errors."""
        jobs = self.push_in_progress.jobs if self.push_in_progress else []
        for job in jobs:
            if job.done() and (error := job.exception()):
                print(f"[push] not uploaded: {_without_tokens(error, self.args.hub_token)}", flush=True)
        going = [job for job in jobs if not job.done()]
        self.push_in_progress = PushInProgress(going) if going else None
        return going

    def _finish_current_push(self) -> None:
        """Trainer's, which waits without end: at most ``PATIENCE`` seconds, as other ranks wait for this one."""
        going = self._pushes()
        if not going:
            return
        print(f"[push] waiting for {len(going)} upload(s), {PATIENCE:.0f} s at most", flush=True)
        wait(going, timeout=PATIENCE)
        if left := self._pushes():
            print(f"[push] {len(left)} upload(s) not waited for any longer: what is saved here is whole", flush=True)


def _list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
