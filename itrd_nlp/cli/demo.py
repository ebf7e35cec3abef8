"""A web page on this computer: teacher and student answer the same question, side by side."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.inference.answering import answer, load_model
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel
from itrd_nlp.training.interruption import Stopped
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.modeling import parameter_count, size_mib

TEXT_LIMIT = 20_000  # characters
QUESTION_LIMIT = 300  # characters
BODY_LIMIT = 2**20  # bytes of a request: room for both in any script
EXAMPLES = 3  # offered on the page
REPEATS, BUDGET = 5, 2.0  # timed answers of each model to a question, fewer where they take more seconds
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Example(NamedTuple):
    """A question and the text that holds its answer."""

    question: str
    text: str


class Loaded(NamedTuple):
    """A model that answers, loaded once: ``teacher`` or ``student``, its name, itself and its tokenizer."""

    role: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, role: str, source: str) -> Loaded:
        """The model of a folder or Hub id; raises :class:`UserError` where it cannot answer questions."""
        name = "/".join(Path(source).parts[-2:])
        return cls(role, name, load_model(source), load_tokenizer(source))

    def facts(self) -> dict[str, Any]:
        """What the page says of it before any question: role, name, parameters and MiB of the weights."""
        count: int | None = parameter_count(self.model)
        mib = size_mib(self.model)
        if isinstance(self.model, OnnxModel):  # whose weights are in its file
            record = self.model.path.with_name("export.json")
            count = read_json(record)["parameters"] if record.is_file() else None
            mib = self.model.path.stat().st_size / 2**20
        return {"role": self.role, "name": self.name, "parameters": count, "mib": mib}


class Demo:
    """The models of a demo and what they answer, one after the other, so that no latency disturbs another."""

    def __init__(self, models: Sequence[Loaded], examples: Sequence[Example]):
        self.models, self.examples = models, examples
        self.worker = ThreadPoolExecutor(1)
        self.ask(*examples[0])  # the first run of a model is slower than any other

    def describe(self) -> dict[str, Any]:
        """What the page shows before any question: models, examples, and how long a text may be."""
        models = [model.facts() for model in self.models]
        return {"models": models, "examples": [example._asdict() for example in self.examples], "limit": TEXT_LIMIT}

    def ask(self, question: str, text: str) -> list[dict[str, Any]]:
        """The answer of each model: its role, text, characters [start, end), confidence (0 to 1), latency in ms.

        Raises:
            UserError: an empty or too long question or text.
        """
        for what, given, limit in (("question", question, QUESTION_LIMIT), ("text", text, TEXT_LIMIT)):
            if not given.strip():
                raise UserError(
                    f"The {what} is empty: {'ask something' if what == 'question' else 'paste a paragraph'}."
                )
            if len(given) > limit:
                raise UserError(f"The {what} has {len(given):,} characters: shorten it to {limit:,}.")
        return self.worker.submit(self._replies, question, text).result()

    def _replies(self, question: str, text: str) -> list[dict[str, Any]]:
        """Times the models in turns and keeps the best, which a busy computer disturbs least."""
        found, times = {}, {model.role: list[float]() for model in self.models}
        begun = time.perf_counter()
        for repeat in range(REPEATS):
            if repeat and time.perf_counter() - begun > BUDGET:
                break
            for role, _, model, tokenizer in self.models:
                started = time.perf_counter()
                found[role] = answer(model, question, text, tokenizer)
                times[role].append((time.perf_counter() - started) * 1000)
        return [
            {"role": role, "text": a.text, "start": a.start, "end": a.end, "confidence": a.score}
            | {"ms": min(times[role])}
            for role, a in found.items()
        ]


class Handler(BaseHTTPRequestHandler):
    """The page, ``GET /demo`` and ``POST /answer``, in JSON; wrong input is ``{"error": one line}``."""

    server: Server
    timeout = 30  # seconds that a connection may be silent

    def do_GET(self) -> None:
        """Send the page, one of its files, or what it shows before any question."""
        if not self._is_local():
            return
        if self.path == "/demo":
            self._send_json(self.server.demo.describe())
        elif self.path in PAGE:
            name, kind = PAGE[self.path]
            self._send((resources.files("itrd_nlp") / "page" / name).read_bytes(), kind)
        else:
            self._send_json({"error": f"nothing at {self.path}"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Answer a question; a model's own failure ends this answer, not the demo."""
        if not self._is_local():
            return
        content: dict[str, Any]
        try:
            if self.path != "/answer":
                raise UserError("only /answer takes questions")
            content, status = {"answers": self.server.demo.ask(*self._asked())}, HTTPStatus.OK
        except UserError as error:
            content, status = {"error": first_line(error)}, HTTPStatus.BAD_REQUEST
        except ConnectionError:  # the visitor left
            return
        except Exception as error:
            print(f"itrd: error: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
            content, status = {"error": f"The model failed: {first_line(error)}"}, HTTPStatus.INTERNAL_SERVER_ERROR
        self._send_json(content, status)

    def _asked(self) -> Example:
        """Question and text of a request."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdecimal():
            raise UserError("expected JSON with a question and a text")
        if int(length) > BODY_LIMIT:
            for begin in range(0, int(length), BODY_LIMIT):  # a browser reads no reply before it has sent all
                self.rfile.read(min(BODY_LIMIT, int(length) - begin))
            raise UserError(f"The text is too long: shorten it to {TEXT_LIMIT:,} characters.")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise UserError(f"expected JSON with a question and a text: {first_line(error)}") from error
        given = [body.get(name) for name in Example._fields] if isinstance(body, Mapping) else []
        # half a character, which JSON allows, is none that a tokenizer takes
        texts = [t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in given if isinstance(t, str)]
        if len(texts) < 2:
            raise UserError("expected JSON with a question and a text, both text")
        return Example(*texts)

    def _is_local(self) -> bool:
        """Whether the browser asked for this computer: another site's name may be made to point here."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host in ("localhost", "127.0.0.1"):
            return True
        self._send_json({"error": "open the demo at http://127.0.0.1"}, HTTPStatus.FORBIDDEN)
        return False

    def _send_json(self, content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # the visitor left
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


class Server(ThreadingHTTPServer):
    """A demo at a port of this computer; nothing else can reach it."""

    demo: Demo

    def __init__(self, port: int):
        """Take the port (0: any free one); raises :class:`UserError` where it cannot be had."""
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "there are 65,535"
            raise UserError(f"--port {port}: {reason}; pass another one, or 0 for any that is free") from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def read_examples(file: str) -> list[Example]:
    """The first question of each of the first texts of a file in any form that `itrd predict --file` reads."""
    from itrd_nlp.tasks.question_answering.data import read_questions

    first: dict[str, str] = {}
    for row in read_questions(file):
        first.setdefault(row["context"], row["question"])
    return [Example(question, text) for text, question in list(first.items())[:EXAMPLES]]


def default_examples(tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Three paragraphs of general English, or stories of the toy task for a model that knows no other words."""
    from itrd_nlp.tasks.toy import build_tokenizer, generate

    if tokenizer.get_vocab() == build_tokenizer().get_vocab():
        return [Example(row["question"], row["context"]) for row in generate(EXAMPLES, seed=7)]
    text = (resources.files("itrd_nlp") / "page" / "examples.json").read_text(encoding="utf-8")
    return [Example(**row) for row in json.loads(text)]


def serve(student: str, teacher: str | None = None, port: int = 7860, examples: str | None = None) -> None:
    """Answer questions on a web page until stopped.

    Args:
        student: folder or Hub id of a model with a question-answering head.
        teacher: the same; None: the student answers alone.
        port: of this computer, 0 for any free one.
        examples: a file of questions with their contexts; None: see :func:`default_examples`.

    Raises:
        UserError: a port that is taken, a model that cannot answer, or a file that cannot be read.
    """
    given = read_examples(examples) if examples else None
    with Server(port) as server:
        sources = {"teacher": teacher, "student": student}
        models = [Loaded.read(role, source) for role, source in sources.items() if source]
        server.demo = Demo(models, given or default_examples(models[-1].tokenizer))
        print(f"itrd demo: {server.url} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except Stopped:
            print("\nitrd demo: ended")
