"""Shared fixtures: a small tokenizer, a small model, and the folder of real data where there is one."""

import atexit
import gc
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import that reads it

import shutil
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="itrd-tests-")  # caches of data and teachers, not the user's own

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from itrd_nlp.utils.console import show_messages

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
torch.set_num_threads(1)
show_messages()
# the same examples each time, whatever the machine is doing
slow = [HealthCheck.too_slow]
settings.register_profile("tests", deadline=None, derandomize=True, database=None, suppress_health_check=slow)
settings.load_profile("tests")


class Promises:
    """Counts the cases of the tests that are marked with a promise, and how many of them failed; see CONTRIBUTING."""

    def __init__(self, path: Path):
        self.path = path
        self.counts: dict[str, dict[str, int]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if "promise" not in properties or report.skipped or not (report.when == "call" or report.failed):
            return
        count = self.counts.setdefault(properties["promise"], {"cases": 0, "failures": 0})
        count["cases"] += properties.get("cases", 1)
        count["failures"] += report.failed

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(dict(sorted(self.counts.items())), indent=1) + "\n", encoding="utf-8")


def pytest_collection_finish() -> None:
    """Keep what imports made out of garbage collection: each training starts two, of half a second otherwise."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises", type=Path, help="write how many cases each promise had, and how many failed")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.promises and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Promises(config.option.promises))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("promise"):
            item.user_properties.append(("promise", marker.args[0]))


SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
WORDS = (
    "the",
    "of",
    "in",
    "to",
    "and",
    "is",
    "was",
    "river",
    "city",
    "king",
    "house",
    "who",
    "where",
    "##s",
    "##ed",
    "##ing",
)


@pytest.fixture(autouse=True)
def seeded():
    """Models that a test makes without a seed are the same in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_cache_left():
    yield
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece of some words and all ASCII characters; anything else is [UNK]."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*SPECIAL.values(), *characters, *(f"##{c}" for c in characters), *WORDS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **SPECIAL,
    )


@pytest.fixture
def tiny_bert(tokenizer: PreTrainedTokenizerFast) -> BertForQuestionAnswering:
    """Four layers, 32 wide, seeded, in eval mode."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    return BertForQuestionAnswering(config).eval()


class Later(Future):
    """An upload in the background, as slow as can be: it starts when somebody waits for it."""

    def __init__(self, upload: Callable[[], None]) -> None:
        super().__init__()
        self.upload = upload

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self.done():
            try:
                self.set_result(self.upload())
            except Exception as error:
                self.set_exception(error)
        return super().exception(timeout)


class Hub:
    """What HfApi would send: each upload as a commit of files."""

    def __init__(self) -> None:
        self.repos: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []
        self.refuses: Exception | None = None  # repositories
        self.fails: Exception | None = None  # uploads
        self.open = Event()  # uploads wait until it is set
        self.open.set()

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.repos.append({"name": repo_id, **options})
        if self.refuses:
            raise self.refuses
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, run_as_future: bool = False, **options: Any) -> Any:
        if run_as_future:
            return Later(lambda: self._upload(**options))
        return self._upload(**options)

    def _upload(
        self,
        *,
        folder_path: Path,
        allow_patterns: Any,
        path_in_repo: str = "",
        token: str | None = None,
        **options: Any,
    ) -> None:
        self.open.wait(60)
        if self.fails:
            raise self.fails
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        chosen = filter_repo_objects(names, allow_patterns=allow_patterns)
        files = {str(PurePosixPath(path_in_repo, name)): (folder_path / name).read_bytes() for name in chosen}
        self.commits.append({"files": files, "folder": folder_path, "token": token, **options})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Stands in for the Hub: nothing is sent."""
    there = Hub()
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda _, *args, name=name, **options: getattr(there, name)(*args, **options))
    return there


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; its tests skip without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs the real data in ../shared")
    return path


@pytest.fixture(scope="session")
def chromium():
    """A browser of this computer; its tests skip without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'itrd_nlp[dev]'")
    found = [path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path]
    if not found:
        pytest.skip("needs chromium on the path")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found[0])
        yield browser
        browser.close()
