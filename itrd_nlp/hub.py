"""Publishing a student on the Hub: its own files and its card, and nothing else of its folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HTTPError
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy, has_length
from transformers.utils.hub import PushInProgress, hf_api

from itrd_nlp.arguments import ITRDArguments
from itrd_nlp.card import write_card
from itrd_nlp.checkpoint import SEAL
from itrd_nlp.durable import read_json
from itrd_nlp.errors import UserError, first_line
from itrd_nlp.lineage import CARD
from itrd_nlp.measure import parameter_count, size_mib
from itrd_nlp.plan import json_values, training_values
from itrd_nlp.record import Record, provenance

# what save_pretrained writes of a model, a tokenizer and an image processor: safetensors, JSON and vocabularies
PUBLISHED = (
    *(CARD, "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "*.model"),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),  # of a sentence encoder
)
REFUSED = (OSError, ValueError, RuntimeError, HTTPError)  # by the Hub, or on the way to it


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
        names: of the files, their paths below ``folder``; those that ``PUBLISHED`` matches, by default.
        options: of ``HfApi.upload_folder``.

    Raises:
        UserError: the upload failed.
    """
    if names is None:
        found = {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
        names = sorted(path.relative_to(folder).as_posix() for path in found)
    token = token or args.hub_token
    try:
        return hf_api().upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            token=token,
            revision=revision or args.hub_revision,
            allow_patterns=list(names),
            **options,
        )
    except REFUSED as error:
        raise UserError(
            f"{folder} could not be pushed to {repo} ({_without_tokens(error, token)}): it is whole here; the same "
            "again tries it again"
        ) from None


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

        A card that was changed by hand stays. A whole run has more to tell, see :func:`itrd_nlp.run.run`.
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
        """Start to upload a sealed checkpoint: its student, and all of it where ``hub_strategy`` asks for that."""
        strategy = self.args.hub_strategy
        if not self.args.push_to_hub or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [publish(checkpoint, self.hub_model_id, self.args, message, run_as_future=True)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            options: dict[str, Any] = {"names": [*read_json(checkpoint / SEAL), SEAL], "path_in_repo": place}
            message += ", checkpoint"
            jobs.append(publish(checkpoint, self.hub_model_id, self.args, message, run_as_future=True, **options))
        self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self) -> None:
        """Wait for the uploads that were started, before their files go; one that failed is told, and is no error."""
        for job in self.push_in_progress.jobs if self.push_in_progress else ():
            if error := job.exception():
                print(f"[push] not uploaded: {_without_tokens(error, self.args.hub_token)}", flush=True)
        self.push_in_progress = None


def _list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
