"""A Trainer that saves the student as a plain folder, and resumes from complete checkpoints alone."""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.trainer_callback import ExportableState

from itrd_nlp.training.checkpoint import (
    MARKER,
    checkpoints,
    last_checkpoint,
    load_distiller,
    mark_complete,
    save_distiller,
    why_incomplete,
)
from itrd_nlp.training.hub_trainer import HubTrainer
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.ranks import from_first_rank
from itrd_nlp.utils.tokenizers import save_processor

logger = logging.getLogger(__name__)


class CheckpointingTrainer(HubTrainer):
    """A ``Trainer`` whose model is a :class:`~itrd_nlp.distillation.distiller.Distiller`, saved and resumed."""

    resumed_from: Path | None = None  # the checkpoint

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        save_distiller(self.distiller, folder, state_dict)
        own = self.processing_class
        processor = _tokenizer_of(self.data_collator) if own is None else own
        if processor is not None:
            save_processor(processor, folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's; older checkpoints are removed once the new one is complete."""
        folder = Path(self._get_output_dir(trial=trial))
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        for callback in self.callback_handler.callbacks:  # Trainer fails for those that a resumed run did not have
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        if self.args.should_save:
            (checkpoint / MARKER).unlink(missing_ok=True)  # of an earlier training, whose files are overwritten
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(checkpoint)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer
                raise
            raise UserError(
                f"{checkpoint} could not be written ({one_line(error)}): make room, then run the same again; it "
                "continues"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder, limit, {checkpoint, *([Path(best)] if best else [])})
        self.push_checkpoint(checkpoint)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; True takes the last complete checkpoint.

        A named checkpoint without a marker, as another trainer writes it, is taken with a warning.

        Raises:
            UserError: no checkpoint is complete, or the one that was named is not.
        """
        if resume_from_checkpoint is True:
            newest = from_first_rank(lambda: last_checkpoint(Path(self.args.output_dir)), self.args)
            if newest is None:
                raise UserError(f"{self.args.output_dir} has no complete checkpoint: expected one to resume from")
            resume_from_checkpoint = str(newest)
        elif resume_from_checkpoint:
            _check_complete(Path(resume_from_checkpoint))
        self.resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trainer's; the best checkpoint is found where the folder was moved, or is spelt in another way."""
        done = super()._init_training_state(*args, **kwargs)
        if self.state.best_model_checkpoint is None and self.state.best_global_step:
            best = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.best_global_step}"
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
        return done

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled or not (folder / "config.json").is_file():
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_distiller(self.accelerator.unwrap_model(self.model if model is None else model), folder)
        return None

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        _check_complete(Path(self.state.best_model_checkpoint))
        return self._load_from_checkpoint(self.state.best_model_checkpoint)


def _tokenizer_of(collator: Any) -> Any:
    """The tokenizer of a collator, or of one that it wraps; None where there is none."""
    while not hasattr(collator, "tokenizer") and hasattr(collator, "collator"):
        collator = collator.collator
    return getattr(collator, "tokenizer", None)


def rotate(folder: Path, limit: int | None, keep: Collection[Path]) -> None:
    """Remove the oldest checkpoints beyond ``limit``, never those in ``keep``; None or 0 keeps all.

    Trainer goes by their numbers where all were written within a second, and could remove the newest.
    """
    if not limit or limit < 0:
        return
    keep = {path.resolve() for path in keep}  # the best one may be spelt as an earlier start spelt its folder
    others = {path: step for step, path in checkpoints(folder).items() if path.resolve() not in keep}
    oldest_first = sorted(others, key=lambda path: (path.stat().st_mtime_ns, others[path]))
    room = max(0, limit - len(keep))
    for path in oldest_first[: max(0, len(others) - room)]:
        shutil.rmtree(path, ignore_errors=True)


def _check_complete(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; expected a checkpoint to resume from")
    if not (checkpoint / MARKER).is_file():
        logger.warning(f"[resume] {checkpoint} has no {MARKER}: it may be incomplete")
    elif reason := why_incomplete(checkpoint):
        raise UserError(f"{checkpoint} cannot be resumed from: {reason}; take another checkpoint")
