"""An exported model in a browser, through transformers.js, beside the same model in Python.

    npm install --prefix scripts/browser --ignore-scripts
    python scripts/browser/check.py FOLDER --text "What a film!"
    python scripts/browser/check.py FOLDER --question "Who wrote it?" --context "Ada wrote it in 1843."

Needs playwright and chromium on the path: pip install 'itrd_nlp[dev]'. Nothing is loaded from the network at run time.
"""

import argparse
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from transformers import AutoConfig

from itrd_nlp.inference.answering import answer
from itrd_nlp.inference.texts import classify
from itrd_nlp.models.classes import temperature_of
from itrd_nlp.models.onnx_model import FILES
from itrd_nlp.utils.modeling import INDEPENDENT

HERE = Path(__file__).parent
LIBRARY = HERE / "node_modules" / "@huggingface" / "transformers"
DTYPES = {"fp32": "fp32", "int8": "q8"}  # form -> transformers.js's name


class Handler(SimpleHTTPRequestHandler):
    """Serves this folder, and an exported one as ``model/``."""

    def __init__(self, *args: Any, folder: Path, **options: Any):
        self.folder = folder
        super().__init__(*args, directory=str(HERE), **options)

    def translate_path(self, path: str) -> str:
        file = Path(super().translate_path(path))  # normalised, below this folder
        model = HERE / "model"
        return str(self.folder / file.relative_to(model) if file.is_relative_to(model) else file)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the page and an exported folder on this computer alone; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folder=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html"
    finally:
        server.shutdown()
        server.server_close()


def predict(browser: Browser, folder: Path, task: str, form: str, inputs: Sequence[Sequence[Any]]) -> list[Any]:
    """The results of transformers.js's pipeline for one of the models of an exported folder.

    Args:
        task: the pipeline's name.
        form: fp32 or int8.
        inputs: the arguments of each call.

    Raises:
        RuntimeError: the page asked another server for something.
    """
    with served(folder) as address:
        page = browser.new_page()
        foreign: list[str] = []
        page.on("request", lambda request: foreign.append(request.url) if not is_local(request.url) else None)
        page.goto(address)
        page.get_by_text("Ready.").wait_for()
        results = page.evaluate("words => window.predict(...words)", [task, DTYPES[form], inputs])
        page.close()
    if foreign:
        raise RuntimeError(f"the page asked for {foreign[0]}")
    return results


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "blob:", "data:"))


def plain(scores: dict[str, float], folder: Path) -> dict[str, float]:
    """Probabilities without the temperature in the folder's config, of which transformers.js knows nothing."""
    config = AutoConfig.from_pretrained(folder)
    temperature = temperature_of(config) or 1.0
    powers = {name: score**temperature for name, score in scores.items()}
    if config.problem_type == INDEPENDENT:  # each class beside its absence
        return {name: power / (power + (1 - scores[name]) ** temperature) for name, power in powers.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="what itrd export wrote")
    parser.add_argument("--text")
    parser.add_argument("--question")
    parser.add_argument("--context")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for form, file in FILES.items():
            model = options.folder / file
            if not model.is_file():
                continue
            if options.text is None:
                task, words = "question-answering", [options.question, options.context]
                here: Any = answer(model, options.question, options.context)._asdict()
            else:
                task, words = "text-classification", [options.text, {"top_k": 3}]
                result = classify(str(model), options.text)
                if "scores" not in result:
                    raise SystemExit(f"{options.folder} has no classes: transformers.js has no pipeline for its scores")
                here = plain(result["scores"], options.folder)
                here = dict(sorted(here.items(), key=lambda item: -item[1])[:3])
            (there,) = predict(browser, options.folder, task, form, [words])
            print(f"{form}\n  Python:  {json.dumps(here)}\n  browser: {json.dumps(there)}")
        browser.close()


if __name__ == "__main__":
    main()
