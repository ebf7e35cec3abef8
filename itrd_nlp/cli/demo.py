"""A Gradio page on this computer: teacher and student answer the same question, side by side."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.inference.answering import answer, load_model
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel
from itrd_nlp.tasks.question_answering.spans import Answer
from itrd_nlp.training.interruption import Stopped
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.modeling import parameter_count, size_mib

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"
LIMITS = {"question": 300, "context": 20_000}  # characters
EXAMPLES = 3  # offered on the page
REPEATS, BUDGET = 5, 2.0  # timed answers of each model to a question, fewer where they take more seconds


class Example(NamedTuple):
    """A question and the context that holds its answer."""

    question: str
    context: str


class Loaded(NamedTuple):
    """A model that answers, loaded once: ``teacher`` or ``student``, its name, itself and its tokenizer."""

    role: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, role: str, source: str) -> Loaded:
        """The model of a folder or Hub id; raises :class:`UserError` where it cannot answer questions."""
        return cls(role, "/".join(Path(source).parts[-2:]), load_model(source), load_tokenizer(source))

    def size(self) -> str:
        """Parameters, where they are known, and MiB of the weights."""
        if not isinstance(self.model, OnnxModel):
            return f"{parameter_count(self.model):,} parameters, {size_mib(self.model):,.1f} MiB"
        record = self.model.path.with_name("export.json")
        count = f"{read_json(record)['parameters']:,} parameters, " if record.is_file() else ""
        return f"{count}{self.model.path.stat().st_size / 2**20:,.1f} MiB"


def ask(models: Sequence[Loaded], question: str, context: str) -> list[tuple[Answer, float]]:
    """Each model's answer and its seconds: the best of several in turns, which a busy computer disturbs least.

    Raises:
        UserError: an empty or too long question or context.
    """
    for (what, limit), text in zip(LIMITS.items(), (question, context), strict=True):
        if not text.strip():
            raise UserError(f"The {what} is empty: {'ask something' if what == 'question' else 'paste a paragraph'}.")
        if len(text) > limit:
            raise UserError(f"The {what} has {len(text):,} characters: shorten it to {limit:,}.")
    timed: list[list[tuple[Answer, float]]] = [[] for _ in models]
    begun = time.perf_counter()
    while len(timed[0]) < REPEATS and (not timed[0] or time.perf_counter() - begun < BUDGET):
        for (_, _, model, tokenizer), answers in zip(models, timed, strict=True):
            started = time.perf_counter()
            answers.append((answer(model, question, context, tokenizer), time.perf_counter() - started))
    return [min(answers, key=lambda pair: pair[1]) for answers in timed]


def show(found: Answer, seconds: float, context: str) -> tuple[dict[str, float], list[tuple[str, str | None]], str]:
    """An answer with its confidence, the context in pieces of which the answer is marked, and the latency."""
    pieces = [(context[: found.start], None), (found.text, "answer"), (context[found.end :], None)]
    label = {found.text or "No answer in this context": found.score}
    return label, [piece for piece in pieces if piece[0]], f"{seconds * 1000:.1f} ms"


def build(models: Sequence[Loaded], examples: Sequence[Example]) -> Blocks:
    """The page, which opens with the first example answered: what is asked above, a column for each model below."""
    import gradio

    def reply(question: str | None, context: str | None) -> list[Any]:
        asked = question or "", context or ""  # a script may send null
        try:
            return [shown for found, seconds in ask(models, *asked) for shown in show(found, seconds, asked[1])]
        except UserError as error:
            raise gradio.Error(str(error), title="Not asked", print_exception=False) from error

    with gradio.Blocks(title="itrd demo", analytics_enabled=False) as page:
        gradio.Markdown("# Teacher and student, side by side" if len(models) > 1 else "# Ask the student")
        context = gradio.Textbox(examples[0].context, label="Context", lines=5, max_lines=12, elem_id="context")
        question = gradio.Textbox(examples[0].question, label="Question", elem_id="question")
        rows, labels = [list(example) for example in examples], [example.question for example in examples]
        gradio.Examples(rows, [question, context], example_labels=labels, cache_examples=False)
        button = gradio.Button("Ask", variant="primary", elem_id="ask")
        outputs: list[Any] = []
        with gradio.Row():
            for model in models:
                role = model.role
                with gradio.Column(min_width=280):
                    gradio.Markdown(f"**{role.title()}** `{model.name}`: {model.size()}", elem_id=role)
                    outputs += [
                        gradio.Label(label="Answer", elem_id=f"{role}-answer"),
                        gradio.HighlightedText(
                            label="In the context", show_inline_category=False, elem_id=f"{role}-context"
                        ),
                        gradio.Textbox(label="Latency", elem_id=f"{role}-latency"),
                    ]
        asking = [page.load, button.click, question.submit]
        gradio.on(asking, reply, [question, context], outputs, api_name="answer", concurrency_limit=1)
    return page


def start(models: Sequence[Loaded], examples: Sequence[Example], port: int) -> Blocks:
    """Serve the page from a thread: its ``local_url`` says where, its ``close()`` ends it."""
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    page = build(models, examples)
    page.launch(
        server_name=HOST,
        server_port=port,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        # another site's name may be made to point to this computer
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        footer_links=[],
        prevent_thread_lock=True,
        show_error=True,
        quiet=True,
        share=False,
        inline=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
    )
    return page


def read_examples(file: str) -> list[Example]:
    """The first question of each of the first contexts of a file in any form that `itrd predict --file` reads."""
    from itrd_nlp.tasks.question_answering.data import read_questions

    first: dict[str, str] = {}
    for row in read_questions(file):
        first.setdefault(row["context"], row["question"])
    return [Example(question, context) for context, question in list(first.items())[:EXAMPLES]]


def default_examples(tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Three paragraphs of general English, or stories of the toy task for a model that knows no other words."""
    from itrd_nlp.tasks.toy import build_tokenizer, generate

    if tokenizer.get_vocab() == build_tokenizer().get_vocab():
        return [Example(row["question"], row["context"]) for row in generate(EXAMPLES, seed=7)]
    text = (resources.files("itrd_nlp") / "page" / "examples.json").read_text(encoding="utf-8")
    return [Example(**row) for row in json.loads(text)]


def reserve(port: int) -> socket.socket:
    """A socket that holds a port of this computer, 0 for any free one, until it is closed."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "there are 65,535"
        raise UserError(f"--port {port}: {reason}; pass another one, or 0 for any that is free") from error


def serve(student: str, teacher: str | None = None, port: int = 7860, examples: str | None = None) -> None:
    """Answer questions on a web page until stopped.

    Args:
        student: folder or Hub id of a model with a question-answering head.
        teacher: the same; None: the student answers alone.
        port: of this computer, 0 for any free one.
        examples: a file of questions with their contexts; None: see :func:`default_examples`.

    Raises:
        UserError: Gradio is not installed, a port is taken, a model cannot answer, or a file cannot be read.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"demo needs gradio: pip install 'itrd_nlp[demo]' ({first_line(error)})") from None
    given = read_examples(examples) if examples else None
    with reserve(port) as reserved:
        sources = {"teacher": teacher, "student": student}
        models = [Loaded.read(role, source) for role, source in sources.items() if source]
        given = given or default_examples(models[-1].tokenizer)
        ask(models, *given[0])  # the first run of a model is slower than any other
        port = reserved.getsockname()[1]
    page = start(models, given, port)
    print(f"itrd demo: {page.local_url} (Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    except Stopped:
        print("\nitrd demo: ended")
    finally:
        page.close(verbose=False)
