"""What is refused of images before anything runs."""

import pytest
import torch

pytest.importorskip("timm", reason="the extra vision is not installed")

from itrd_nlp import ITRDArguments  # noqa: E402
from itrd_nlp.training.image_checks import check_last_batch  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.models import load_image_model  # noqa: E402


@pytest.mark.parametrize(
    "images,kind,refused",
    [
        (9, "resnet10t", True),
        (10, "resnet10t", False),
        (9, "cifar_resnet20", False),
        (9, "cifar_vgg_small_recu", False),
    ],
)
def test_a_last_batch_of_one_image_is_refused_where_nothing_normalises_it(images, kind, refused, tmp_path):
    model, _ = load_image_model(kind, ["a", "b"], 0)
    data = [{"pixel_values": torch.zeros(3, 32, 32), "labels": 0}] * images
    args = ITRDArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, bf16=False)

    def check():
        check_last_batch(model.train(), args, data, lambda: {"pixel_values": torch.zeros(2, 3, 32, 32)})
        assert model.training

    if refused:
        with pytest.raises(UserError, match="9 training images in batches of 4 leave one for the last batch"):
            check()
        args.dataloader_drop_last = True
    check()
    args.dataloader_drop_last, args.max_steps = False, 2  # it never comes
    check()
