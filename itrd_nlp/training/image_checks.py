"""What a trainer refuses of images, before anything runs."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length

from itrd_nlp.distillation.probe import outputs_of
from itrd_nlp.losses import of_losses
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.batch_norm import Norm
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import eval_mode, reads_images

NOT_FOR_IMAGES = {  # argument -> why
    "tokens_per_batch": "expected per_device_train_batch_size",
    "torch_compile": "expected an encoder of texts, whose layers are compiled",
    "neftune_noise_alpha": "it is noise on the embeddings of tokens",
    "dataloader_persistent_workers": "the workers would augment every epoch alike",
}


def check_images(model: PreTrainedModel, args: ITRDArguments) -> None:
    """Refuse arguments and losses for texts where the model reads images."""
    if not reads_images(model):
        return
    for name, reason in NOT_FOR_IMAGES.items():
        if getattr(args, name):
            raise UserError(f"{name} with images: {reason}; leave it out")
    if losses := of_losses(args.losses, "of_texts"):
        raise UserError(f"{losses[0]} with images: it compares the tokens of texts; name other losses")


def check_last_batch(
    student: PreTrainedModel, args: ITRDArguments, dataset: Any, probe: Callable[[], Mapping[str, Tensor]]
) -> None:
    """Refuse a last batch of one image where batch normalisation would get a single value of a channel."""
    norms = [m for m in student.modules() if isinstance(m, _BatchNorm) and not isinstance(m, Norm)]
    if not norms or not has_length(dataset) or args.dataloader_drop_last or args.world_size > 1:
        return
    size, images = args.train_batch_size, len(dataset)
    batches = args.max_steps * args.gradient_accumulation_steps
    if batches <= 0:
        batches = math.ceil(args.num_train_epochs * images / size)
    if (images - 1) % size or batches * size < images:
        return
    single: list[bool] = []
    with eval_mode(student), ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_pre_hook(lambda _, x: single.append(x[0][0, 0].numel() == 1)))
        outputs_of(student, {name: value.to(student.device) for name, value in probe().items()})
    if any(single):
        raise UserError(
            f"{images:,} training images in batches of {size} leave one for the last batch, of which batch "
            "normalisation has no statistics: for this training, set dataloader_drop_last true or another "
            "per_device_train_batch_size"
        )
