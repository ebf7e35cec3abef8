"""What changes with the epochs, above all training data that is made when it is read, such as augmented images."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from itrd_nlp.utils.datasets import ChangesWithEpochs, Epoch


class EpochBegins(TrainerCallback):
    """Tells the training data and the modules of what is trained which epoch begins."""

    def __init__(self, data: Any):
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        done = float(state.epoch or 0)
        epoch = Epoch(int(done), state.num_train_epochs, args.seed, resumed=done != int(done))
        for each in (self.data, *model.modules()):
            if isinstance(each, ChangesWithEpochs):
                each.start_epoch(epoch)
