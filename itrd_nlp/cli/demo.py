"""A Gradio page on this computer where teacher and student answer the same question, side by side."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.export.latency import summary, take_turns
from itrd_nlp.inference.answering import answer, load_model
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import RECORD, OnnxModel, exported_settings, folder_of
from itrd_nlp.tasks.question_answering.spans import Answer
from itrd_nlp.training.interruption import Stopped
from itrd_nlp.training.record import LATENCY
from itrd_nlp.utils.errors import UserError, needing
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.modeling import parameter_count, size_mib

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"
LIMITS = {"question": 300, "context": 20_000}  # characters
EXAMPLES = 3  # offered on the page
REPEATS, BUDGET = 5, 2.0  # timed answers of each model to a question; three after so many seconds


class Example(NamedTuple):
    """A question and the context that holds its answer."""

    question: str
    context: str


class Loaded(NamedTuple):
    """A loaded model that answers questions; its role is ``teacher`` or ``student``."""

    role: str
    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, role: str, source: str) -> Loaded:
        """Load a folder or Hub id; raises :class:`UserError` where the model cannot answer questions."""
        return cls(role, "/".join(Path(source).parts[-2:]), load_model(source), load_tokenizer(source))

    def size(self) -> str:
        """Parameters, unless an exported model does not record them, and MiB of the weights."""
        if not isinstance(self.model, OnnxModel):
            return f"{parameter_count(self.model):,} parameters, {size_mib(self.model):,.1f} MiB"
        record = Path(folder_of(self.model.path)) / RECORD
        count = f"{read_json(record)['parameters']:,} parameters, " if record.is_file() else ""
        return f"{count}{self.model.path.stat().st_size / 2**20:,.1f} MiB"


def ask(models: Sequence[Loaded], question: str, context: str) -> list[tuple[Answer, dict[str, float]]]:
    """Each model's answer, and the :func:`itrd_nlp.export.latency.summary` of its times.

    Raises:
        UserError: an empty or too long question or context.
    """
    for kind, text in (("question", question), ("context", context)):
        if not text.strip():
            raise UserError(f"The {kind} is empty: fill it in.")
        if len(text) > LIMITS[kind]:
            raise UserError(f"The {kind} has {len(text):,} characters: shorten it to {LIMITS[kind]:,}.")
    answers: dict[str, Answer] = {}
    exported = [exported_settings(each.model.path) for each in models if isinstance(each.model, OnnxModel)]
    thresholds = [each["null_threshold"] for each in exported if each.get("null_threshold") is not None]
    threshold = thresholds[0] if thresholds else None  # one rule for all

    def call(loaded: Loaded) -> None:
        answers[loaded.role] = answer(loaded.model, question, context, loaded.tokenizer, null_threshold=threshold)

    calls = {loaded.role: partial(call, loaded) for loaded in models}
    times = take_turns(calls, REPEATS, warmup=0, budget=BUDGET)
    return [(answers[role], summary(times[role])) for role in calls]


def show(
    result: Answer, latency: Mapping[str, float], context: str
) -> tuple[dict[str, float], list[tuple[str, str | None]], str]:
    """The values of a model's three fields: the answer with its score, the context in pieces, the latency."""
    label = {result.text or "No answer in this context": result.score}
    pieces = [(context[: result.start], None), (result.text, "answer"), (context[result.end :], None)]
    return label, [piece for piece in pieces if piece[0]], f"{latency['median']:.1f} ± {latency['spread']:.1f} ms"


def build(models: Sequence[Loaded], examples: Sequence[Example]) -> Blocks:
    """Build the page: question and context above, a column for each model below; the first example is answered."""
    import gradio

    def reply(question: str | None, context: str | None) -> list[Any]:
        question, context = question or "", context or ""  # a script may send null
        try:
            results = ask(models, question, context)
        except UserError as error:
            raise gradio.Error(str(error), title="Not asked", print_exception=False) from error
        return [value for result, latency in results for value in show(result, latency, context)]

    with gradio.Blocks(title="itrd demo", analytics_enabled=False) as page:
        gradio.Markdown("# Teacher and student, side by side" if len(models) > 1 else "# Ask the student")
        context = gradio.Textbox(examples[0].context, label="Context", lines=5, max_lines=12, elem_id="context")
        question = gradio.Textbox(examples[0].question, label="Question", elem_id="question")
        labels = [example.question for example in examples]
        gradio.Examples([*map(list, examples)], [question, context], example_labels=labels, cache_examples=False)
        button = gradio.Button("Ask", variant="primary", elem_id="ask")
        with gradio.Row():
            outputs = [field for loaded in models for field in _column(loaded)]
        events = [page.load, button.click, question.submit]
        gradio.on(events, reply, [question, context], outputs, api_name="answer", concurrency_limit=1)
    return page


def _column(loaded: Loaded) -> list[Any]:
    """A model's column, and its fields for the values of :func:`show`."""
    import gradio

    role, spread = loaded.role, LATENCY
    with gradio.Column(min_width=280):
        gradio.Markdown(f"**{role.title()}** `{loaded.name}`: {loaded.size()}", elem_id=role)
        return [
            gradio.Label(label="Answer", elem_id=f"{role}-answer"),
            gradio.HighlightedText(label="In the context", show_inline_category=False, elem_id=f"{role}-context"),
            gradio.Textbox(label=f"Latency ({spread})", elem_id=f"{role}-latency"),
        ]


def start(models: Sequence[Loaded], examples: Sequence[Example], port: int) -> Blocks:
    """Serve the page from a thread, at its ``local_url``, until its ``close()`` is called."""
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    page = build(models, examples)
    page.launch(
        server_name=HOST,
        server_port=port,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        # a page of another site could reach this server through a host name that resolves to 127.0.0.1
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
    """The first question of each of the first contexts of a file, in any form that `itrd predict --file` reads."""
    from itrd_nlp.tasks.question_answering.data import read_questions

    questions: dict[str, str] = {}
    for row in read_questions(file):
        questions.setdefault(row["context"], row["question"])
        if len(questions) == EXAMPLES:
            break
    return [Example(question, context) for context, question in questions.items()]


def default_examples(tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Three paragraphs of English, or stories of the toy task for a model that has only its vocabulary."""
    from itrd_nlp.tasks.toy import build_tokenizer, generate

    if tokenizer.get_vocab() == build_tokenizer().get_vocab():
        return [Example(row["question"], row["context"]) for row in generate(EXAMPLES, seed=7)]
    text = (resources.files("itrd_nlp") / "page" / "examples.json").read_text(encoding="utf-8")
    return [Example(**row) for row in json.loads(text)]


def reserve(port: int) -> socket.socket:
    """Open a socket that holds a port of this computer, 0 for any free one, until it is closed."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "there are 65,535"
        raise UserError(f"--port {port}: {reason}; pass another one, or 0 for any that is free") from error


def serve(student: str, teacher: str | None = None, port: int = 7860, examples_file: str | None = None) -> None:
    """Answer questions on a web page until interrupted.

    Args:
        student: folder or Hub id of a model with a question-answering head.
        teacher: the same; None: the student answers alone.
        port: of this computer, 0 for any free one.
        examples_file: questions with their contexts; None: :func:`default_examples`.

    Raises:
        UserError: Gradio is not installed, a port is taken, a model cannot answer, or a file cannot be read.
    """
    with needing("demo needs gradio", "demo"):
        import gradio  # noqa: F401
    examples = read_examples(examples_file) if examples_file else None
    with reserve(port) as reserved:  # a taken port is reported before the models load
        sources = {"teacher": teacher, "student": student}
        models = [Loaded.read(role, source) for role, source in sources.items() if source]
        examples = examples or default_examples(models[-1].tokenizer)
        ask(models, *examples[0])  # the first forward of a model is the slowest
        port = reserved.getsockname()[1]
    page = start(models, examples, port)
    print(f"itrd demo: {page.local_url} (Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    except Stopped:
        print("\nitrd demo: ended")
    finally:
        page.close(verbose=False)
