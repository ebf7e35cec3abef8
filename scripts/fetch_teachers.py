"""Fetches the published teachers that the vision recipes name, and checks that they load.

    python scripts/fetch_teachers.py                     # all, below teachers/
    python scripts/fetch_teachers.py cifar10/resnet56    # one

CIFAR-100: the teachers of RepDistiller, as mdistiller's release mirrors them (MIT). CIFAR-10: He et al.'s networks by
Yerlan Idelbayev (BSD-2-Clause). What is there already is not fetched again; the archive of all CIFAR-100 teachers, once
below the folder, is unpacked from there.
"""

import argparse
import pickle
import tarfile
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict

import itrd_nlp.vision  # noqa: F401
from itrd_nlp.utils.archives import extract
from itrd_nlp.utils.console import run_script
from itrd_nlp.utils.errors import UserError, one_line

CIFAR100 = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
CIFAR10 = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
FILES = {
    "cifar10/resnet20": "resnet20-12fca82f.th",
    "cifar10/resnet32": "resnet32-d509ac18.th",
    "cifar10/resnet56": "resnet56-4bfd9763.th",
}
NETWORKS = {  # folder in the archive -> network
    "wrn_40_2_vanilla": "cifar_wrn_40_2",
    "resnet56_vanilla": "cifar_resnet56",
    "resnet110_vanilla": "cifar_resnet110",
    "resnet32x4_vanilla": "cifar_resnet32x4",
    "vgg13_vanilla": "cifar_vgg13",
    "ResNet50_vanilla": "cifar_resnet50",
}
CHECKPOINT = "ckpt_epoch_240.pth"


def fetch(url: str, path: Path) -> None:
    """Download a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise UserError(f"{url}: cannot be fetched ({one_line(error)}); put it at {path} yourself") from None


def unpack(archive: Path, folder: Path) -> None:
    """Take the checkpoints of ``NETWORKS`` out of the archive, wherever they lie in it."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened.getmembers():
                path = Path(member.name)
                if member.isfile() and path.name == CHECKPOINT and path.parent.name in NETWORKS:
                    member.name = f"{path.parent.name}/{CHECKPOINT}"
                    extract(opened, [member], folder)
    except (tarfile.TarError, EOFError) as error:
        archive.unlink()
        raise UserError(f"{archive}: not a whole archive, removed ({one_line(error)}); try again") from None


def check(path: Path, network: str) -> None:
    """Load a checkpoint strictly into its network; what does not load is removed, to be fetched anew."""
    if not path.is_file():
        raise UserError(f"{path}: not in the archive; expected the weights of {network}")
    try:
        timm.create_model(network).load_state_dict(load_state_dict(str(path), weights_only=True))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        path.unlink()
        raise UserError(f"{path}: not the weights of {network}, removed ({one_line(error)}); try again") from None
    print(f"{path}: {network}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"cifar10, cifar100, or some of {', '.join(FILES)}; all by default")
    parser.add_argument("--folder", type=Path, default=Path("teachers"))
    options = parser.parse_args()
    wanted = {*(options.names or ("cifar10", "cifar100"))}
    if unknown := wanted - {"cifar10", "cifar100", *FILES}:
        raise UserError(f"{', '.join(sorted(unknown))}: expected cifar10, cifar100 or some of {', '.join(FILES)}")
    for name, file in FILES.items():
        if wanted & {"cifar10", name}:
            path = options.folder / f"{name}.th"
            if not path.is_file():
                fetch(f"{CIFAR10}/{file}", path)
            check(path, f"cifar_{path.stem}a")
    if "cifar100" in wanted:
        places = {options.folder / folder / CHECKPOINT: network for folder, network in NETWORKS.items()}
        if not all(path.is_file() for path in places):
            archive = options.folder / Path(CIFAR100).name
            if not archive.is_file():
                fetch(CIFAR100, archive)
            unpack(archive, options.folder)
            archive.unlink()
        for path, network in places.items():
            check(path, network)


if __name__ == "__main__":
    run_script(main)
