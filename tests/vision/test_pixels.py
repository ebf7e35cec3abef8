"""Pictures of all sorts by both ways: the package's evaluation, and what runs beside an exported model."""

import io

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("timm", reason="the extra vision is not installed")

from datasets import Dataset, Image  # noqa: E402
from PIL import Image as PIL  # noqa: E402
from PIL import ImageOps  # noqa: E402
from transformers.image_utils import load_image  # noqa: E402

from itrd_nlp.tasks.image_classification.files import load_images  # noqa: E402
from itrd_nlp.tasks.image_classification.images import DecodedImages, MemoryImages, prepare  # noqa: E402
from itrd_nlp.vision.pixels import coloured, pixels  # noqa: E402
from itrd_nlp.vision.preprocessing import Preprocessing  # noqa: E402
from itrd_nlp.vision.steps import steps_of  # noqa: E402

DRAW = np.random.default_rng(0)
ORIENTATION = 0x0112


def drawn(height, width, channels=3):
    return DRAW.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def file(image, kind, **options):
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def turned(number, height=40, width=56, kind="jpeg"):
    """A picture with an EXIF orientation, stored as cameras do."""
    exif = PIL.Exif()
    exif[ORIENTATION] = number
    return file(PIL.fromarray(drawn(height, width)), kind, exif=exif, **({"quality": 95} if kind == "jpeg" else {}))


def palette(transparent):
    image = PIL.fromarray(drawn(50, 40)).quantize(17)
    return file(image, "png", **({"transparency": 3} if transparent else {}))


def animation(kind):
    frames = [PIL.fromarray(drawn(30, 44)) for _ in range(3)]
    return file(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {})
    )


PICTURES = {
    "wide": file(PIL.fromarray(drawn(20, 300)), "png"),
    "tall": file(PIL.fromarray(drawn(300, 21)), "png"),
    "tiny": file(PIL.fromarray(drawn(2, 3)), "png"),
    "a pixel": file(PIL.fromarray(drawn(1, 1).reshape(1, 1, 3)), "png"),
    "a row": file(PIL.fromarray(drawn(1, 80).reshape(1, 80, 3)), "png"),
    "a column": file(PIL.fromarray(drawn(80, 1).reshape(80, 1, 3)), "png"),
    "huge": file(PIL.fromarray(drawn(1500, 1801)), "jpeg"),
    "grey": file(PIL.fromarray(drawn(50, 41, 1)), "png"),
    "grey jpeg": file(PIL.fromarray(drawn(50, 41, 1)), "jpeg"),
    "grey of 16 bits": file(PIL.fromarray(DRAW.integers(0, 65536, (33, 50), dtype=np.uint16)), "png"),
    "grey of 16 bits, tiff": file(PIL.fromarray(DRAW.integers(0, 65536, (33, 50), dtype=np.uint16)), "tiff"),
    "black and white": file(PIL.fromarray(drawn(40, 40, 1)).convert("1"), "png"),
    "palette": palette(False),
    "palette with a transparent colour": palette(True),
    "transparent": file(PIL.fromarray(drawn(40, 45, 4)), "png"),
    "grey and transparent": file(PIL.fromarray(drawn(40, 45, 2), "LA"), "png"),
    "four inks": file(PIL.fromarray(drawn(40, 45, 4), "CMYK"), "jpeg"),
    "gif": animation("gif"),
    "webp": animation("webp"),
    "transparent webp": file(PIL.fromarray(drawn(40, 45, 4)), "webp", lossless=True),
    "bmp": file(PIL.fromarray(drawn(40, 45)), "bmp"),
    **{f"turned {number}": turned(number) for number in range(9)},
    "turned png": turned(6, kind="png"),
    "turned webp": turned(5, kind="webp"),
}
KINDS = {
    "timm": lambda: Preprocessing.plain(48, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 0.8, "bicubic"),
    "squash": lambda: Preprocessing(transformers.ViTImageProcessorPil(size={"height": 48, "width": 40}, resample=3)),
    "crop": lambda: Preprocessing(
        transformers.MobileViTImageProcessorPil(size={"shortest_edge": 57}, crop_size={"height": 48, "width": 48})
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def seen(request):
    return KINDS[request.param]()


def test_the_package_and_the_exported_script_see_the_same(seen, tmp_path):
    how = steps_of(seen)
    assert how["grey_levels"] < 1e-3
    data = Dataset.from_dict(
        {"image": [{"bytes": x, "path": None} for x in PICTURES.values()], "label": [0] * len(PICTURES)}
    )
    images = prepare(data.cast_column("image", Image()), seen, augment=False)
    assert isinstance(images, DecodedImages)
    for place, (name, content) in enumerate(PICTURES.items()):
        found = torch.from_numpy(pixels(PIL.open(io.BytesIO(content)), how))
        torch.testing.assert_close(found, images[place]["pixel_values"], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", [name for name in PICTURES if "16" not in name])
def test_pictures_are_what_transformers_loads(name, tmp_path):
    (tmp_path / "picture").write_bytes(PICTURES[name])
    expected = load_image(str(tmp_path / "picture"))
    assert np.array_equal(np.asarray(coloured(PIL.open(tmp_path / "picture"))), np.asarray(expected))


@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize("number", range(1, 9))
def test_photographs_of_phones_are_turned_wherever_they_lie(number, side, tmp_path):
    """Small ones in memory and large ones that are decoded when they are read; of folders and of parquet files."""
    content = turned(number, side, side)
    opened = PIL.open(io.BytesIO(content))
    upright = torch.tensor(np.asarray(ImageOps.exif_transpose(opened))).permute(2, 0, 1).float() / 255
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "0.jpg").write_bytes(content)
    parquet = Dataset.from_dict({"image": [{"bytes": content, "path": None}], "label": [0]})
    parquet.cast_column("image", Image()).to_parquet(tmp_path / "data.parquet")
    plain = Preprocessing.plain(side, (0.0,) * 3, (1.0,) * 3)
    for place in ("data", "data.parquet"):
        data = load_images(validation_file=str(tmp_path / place))[1].remove_columns("label").add_column("label", [0])
        images = prepare(data, plain, augment=False)  # a folder's labels are names until a task numbers them
        assert isinstance(images, MemoryImages if side == 32 else DecodedImages)
        torch.testing.assert_close(images[0]["pixel_values"], upright)


def test_numbers_of_an_unknown_range_are_no_pictures():
    with pytest.raises(ValueError, match="unknown range"):
        coloured(PIL.fromarray(np.zeros((3, 3), np.float32)))
