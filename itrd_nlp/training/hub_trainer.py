"""A Trainer that publishes a student on the Hub, with a card of its own."""

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_utils import HubStrategy, has_length

from itrd_nlp.distillation.distiller import Distiller
from itrd_nlp.training.fingerprint import training_values
from itrd_nlp.training.hub import make_repo, publish, start_upload, without_tokens
from itrd_nlp.training.model_card import OUTPUTS, write_card
from itrd_nlp.training.record import TIMINGS, Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.hashing import json_values
from itrd_nlp.utils.modeling import parameter_count, size_mib

logger = logging.getLogger(__name__)

EVALUATED = re.compile(r"eval_(.*_)?runtime")  # of a log: some models have no eval_loss
PATIENCE = 300.0  # seconds to wait at the end for uploads: less than the others wait in a collective (NCCL: 600)


class HubTrainer(Trainer):
    """A ``transformers.Trainer`` of a :class:`~itrd_nlp.distillation.distiller.Distiller` that publishes its student.

    Trainer itself uploads all of ``output_dir`` with a pickle of the arguments, the token among them.
    """

    args: Any
    sources: Mapping[str, str] = {}  # role -> the models that the student comes from
    uploads: Sequence["Future[Any]"] = ()  # of checkpoints, see `_pending_uploads`

    @property
    def distiller(self) -> Distiller:
        """The module that is trained: the student and its losses."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def student(self) -> PreTrainedModel:
        """The model that is trained and saved."""
        return self.distiller.student

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

        A card that was changed by hand stays. A run writes a fuller one, see :func:`itrd_nlp.experiments.run.run`.
        """
        if not self.is_world_process_zero():
            return
        record = self._record(model_name)
        if data := [*_list(dataset), *_list(dataset_args)] or _list(dataset_tags):
            record.arguments["dataset"] = " ".join(data)
        metadata = {"language": language, "license": license, "tags": _list(tags), "datasets": _list(dataset_tags)}
        metadata["pipeline_tag"] = next(iter(_list(tasks)), None)
        write_card(
            Path(self.args.output_dir),
            self.student,
            record,
            repo=self.hub_model_id or model_name,
            sources={**self.sources, **({"started from": finetuned_from} if finetuned_from else {})},
            metadata={key: value for key, value in metadata.items() if value},
        )

    def _record(self, name: str | None) -> Record:
        """What a trainer knows by itself about its run."""
        last = _evaluation(self.state, bool(self.args.load_best_model_at_end))
        prefixes = [key.removesuffix("runtime") for key in last if EVALUATED.fullmatch(key)]  # of each data set
        others = {prefix + name.removeprefix("eval_") for prefix in prefixes for name in ("eval_loss", *TIMINGS)}
        scores = {  # a table and the Hub take numbers; other values, such as a confusion matrix, stay in the logs
            key.removeprefix("eval_"): value
            for key, value in last.items()
            if key.startswith("eval_") and key not in others and isinstance(value, int | float)
        }
        arguments = json_values(training_values(self.args))
        return Record(
            name or "ITRDTrainer",
            arguments if self.sources.get("teacher") else {**arguments, "losses": {}},
            self.args.seed,
            metrics={"student": scores} if scores else {},
            metric_names=[*scores],
            parameters={"student": parameter_count(self.student)},
            size_mib={"student": size_mib(self.student)},
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
        """Do nothing: Trainer pushes before a checkpoint is complete, :meth:`push_checkpoint` afterwards."""

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Start to upload a complete checkpoint where the arguments ask for it, see :func:`start_upload`.

        As in Trainer, a checkpoint is left out while an earlier one is being uploaded; with ``hub_always_push`` they
        queue instead. Training never waits for them.
        """
        asks_for_it = self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END
        if not asks_for_it or not self.is_world_process_zero():
            return
        earlier = self._pending_uploads()
        if earlier and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self.uploads = [*earlier, start_upload(checkpoint, self.hub_model_id, self.args, message, earlier)]
        except OSError as error:  # such as a full disk
            logger.warning(f"[push] not uploaded: {without_tokens(error, self.args.hub_token)}")

    def _pending_uploads(self) -> Sequence["Future[Any]"]:
        """The uploads that have not ended; warns of those that failed, which is not an error."""
        for upload in self.uploads:
            if upload.done() and (error := upload.exception()):
                logger.warning(f"[push] not uploaded: {without_tokens(error, self.args.hub_token)}")
        self.uploads = [upload for upload in self.uploads if not upload.done()]
        return self.uploads

    def _finish_current_push(self) -> None:
        """Wait at most ``PATIENCE`` seconds, as other ranks wait for this one: Trainer waits without end."""
        if not (pending := self._pending_uploads()):
            return
        logger.info(f"[push] waiting for {len(pending)} upload(s), {PATIENCE:.0f} s at most")
        wait(pending, timeout=PATIENCE)
        if pending := self._pending_uploads():
            logger.warning(f"[push] {len(pending)} upload(s) not waited for any longer: what is saved here is complete")


def _evaluation(state: TrainerState, loads_best: bool) -> dict[str, Any]:
    """The last evaluation of the weights that a trainer holds, of all its data sets; empty where there is none.

    Args:
        loads_best: whether training ends with the best checkpoint.
    """
    logs = state.log_history
    end = max((i for i, log in enumerate(logs) if "train_runtime" in log), default=len(logs))
    best, step = state.best_model_checkpoint, state.global_step
    if loads_best and best is not None and end < len(logs):
        step = int(Path(best).name.rpartition("-")[2])
    evaluations = [(i, log) for i, log in enumerate(logs) if any(map(EVALUATED.fullmatch, log))]
    after = [log for i, log in evaluations if i > end]
    same = after or [log for _, log in evaluations if log["step"] == step]
    return {key: value for log in same for key, value in log.items()}


def _list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def sources_of_models(student: PreTrainedModel, teacher: PreTrainedModel | None, distils: bool) -> dict[str, str]:
    """What a student comes from, by role, as far as the names of the models say."""
    sources = {"teacher": OUTPUTS} if distils else {}
    if teacher is not None:
        sources = {"teacher": teacher.name_or_path or teacher.config.model_type}
    start = student.name_or_path
    return sources if start in ("", *sources.values()) else {**sources, "started from": start}
