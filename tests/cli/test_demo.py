"""The demo's answers, its server through Gradio's own client, and the page in a real browser."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

import tiny
from browser import WINDOWS, overflow
from itrd_nlp.cli import demo
from itrd_nlp.cli.demo import Loaded, ask, default_examples, read_examples, reserve, show, start
from itrd_nlp.cli.main import main
from itrd_nlp.inference.answering import answer
from itrd_nlp.tasks.toy import build_tokenizer
from itrd_nlp.utils.errors import UserError

gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")

TEXT = "The king was in the house of the city. 😀 The river was in the city, and the house was of the king."
QUESTION = "Who was in the house?"
TRAP = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A teacher and a student that answer at random, and differently."""
    made = {}
    for role, layers, seed in (("teacher", 4, 1), ("student", 1, 3)):
        made[role] = str(tmp_path_factory.mktemp("demo") / role)
        tiny.bert(layers=layers, seed=seed, vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(
            made[role]
        )
        tokenizer.save_pretrained(made[role])
    return made


@contextmanager
def serving(models, examples):
    """The page at a free port, until the block ends."""
    with reserve(0) as reserved:
        port = reserved.getsockname()[1]
    page = start(models, examples, port)
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def models(folders):
    return [Loaded.read(role, folder) for role, folder in folders.items()]


@pytest.fixture(scope="module")
def server(models, tokenizer):
    with serving(models, default_examples(tokenizer)) as page:
        yield page


@pytest.fixture(scope="module")
def client(server):
    return gradio_client.Client(server.local_url, verbose=False)


def predict(client, question, context):
    """Of each model: answer with confidence, pieces of the context, latency."""
    values = client.predict(question, context, api_name="/answer")
    return [values[i : i + 3] for i in range(0, len(values), 3)]


def test_both_answer_as_the_library_does_with_what_they_cost(client, folders, models):
    replies = predict(client, QUESTION, TEXT)
    assert len(replies) == 2 and replies[0][0]["label"] != replies[1][0]["label"]
    for folder, (label, pieces, latency) in zip(folders.values(), replies, strict=True):
        expected = answer(folder, QUESTION, TEXT)
        assert label["label"] == expected.text
        assert label["confidences"][0]["confidence"] == pytest.approx(expected.score, rel=1e-4)
        assert "".join(piece["token"] for piece in pieces) == TEXT
        assert [piece["token"] for piece in pieces if piece["class_or_confidence"]] == [expected.text]
        median, spread = latency.removesuffix(" ms").split(" ± ")
        assert float(median) > 0 and float(spread) >= 0
    teacher, student = (int(model.size().split()[0].replace(",", "")) for model in models)
    assert teacher > student > 0 and models[1].size().endswith(f" {student * 4 / 2**20:,.1f} MiB")


def test_no_answer_marks_nothing(models):
    found, latency = ask(models, QUESTION, TEXT)[0]
    label, pieces, _ = show(found._replace(text="", start=0, end=0), latency, TEXT)
    assert list(label) == ["No answer in this context"] and pieces == [(TEXT, None)]


@pytest.mark.parametrize(
    ("question", "text", "message"),
    [
        (" ", TEXT, "The question is empty: fill it in."),
        (QUESTION, "\n", "The context is empty: fill it in."),
        (QUESTION, "a " * 10_001, "The context has 20,002 characters: shorten it to 20,000."),
        ("why " * 100, TEXT, "The question has 400 characters: shorten it to 300."),
        (None, TEXT, "The question is empty: fill it in."),
    ],
)
def test_wrong_texts_are_told_in_one_line(client, models, question, text, message):
    with pytest.raises(gradio_client.exceptions.AppError) as told:
        predict(client, question, text)
    assert str(told.value) == message
    if question is not None:
        with pytest.raises(UserError, match=message[:20]):
            ask(models, question, text)


def test_a_failing_model_ends_no_demo(client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(demo, "answer", lambda *_, **__: 1 / 0)
        with pytest.raises(gradio_client.exceptions.AppError, match="division by zero"):
            predict(client, QUESTION, TEXT)
    assert predict(client, QUESTION, TEXT)


def get(server, path="", **headers):
    """Status and text of a reply."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(server.local_url + path, headers=headers), timeout=60
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as reply:
        with reply:
            return reply.code, reply.read().decode()


def test_it_answers_this_computer_alone(server):
    assert get(server)[0] == get(server, Host="localhost")[0] == 200
    assert get(server, Host="elsewhere.example")[0] == 400
    assert server.server_name == "127.0.0.1" and not server.share


def test_nothing_is_asked_of_another_site(server):
    config = json.loads(get(server, "config")[1])
    assert config["analytics_enabled"] is False and not config["stylesheets"] and config["space_id"] is None
    fonts = [line for line in get(server, "theme.css")[1].split(";") if "--font:" in line or "--font-mono:" in line]
    assert fonts and all("system-ui" in line or "ui-monospace" in line for line in fonts)
    assert "@import" not in get(server, "theme.css")[1] and "@font-face" not in get(server, "theme.css")[1]


@pytest.mark.slow
def test_starting_connects_to_this_computer_alone(folders):
    code = f"""
import socket
real, asked = socket.getaddrinfo, set()
socket.getaddrinfo = lambda host, *rest, **more: asked.add(host) or real(host, *rest, **more)
from itrd_nlp.cli.demo import Loaded, Example, reserve, start
with reserve(0) as reserved:
    port = reserved.getsockname()[1]
page = start([Loaded.read("student", {folders["student"]!r})], [Example("Who?", "The king.")], port)
page.close(verbose=False)
print("asked", *sorted(map(str, asked)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "asked 127.0.0.1", done.stderr


def test_without_gradio_it_is_one_line(capsys, monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--student", folders["student"], "--port", "0"]) == 2
    assert "itrd: error: demo needs gradio: pip install 'itrd_nlp[demo]'" in capsys.readouterr().err


def test_examples_are_the_file_s_or_suit_the_vocabulary(tmp_path, tokenizer):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Who is {i}?", "context": f"Text {i // 2}"} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_examples(str(path)) == [(f"Who is {2 * i}?", f"Text {i}") for i in range(3)]
    assert set(default_examples(tokenizer)[0].question.split()) >= {"Ada", "Lovelace"}
    toy = build_tokenizer()
    assert all(toy.unk_token_id not in toy(example.context).input_ids for example in default_examples(toy))


def test_what_cannot_be_served_is_one_line(capsys, tmp_path, tiny_bert, tokenizer, folders):
    def refused(*words):
        capsys.readouterr()
        assert main(["demo", *words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("itrd: ")]
        assert len(lines) == 1 and lines[0].startswith("itrd: error: ")
        return lines[0]

    student = ("--student", folders["student"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: Address already in use; pass another one" in refused(*student, "--port", port)
    assert "--port 70000" in refused(*student, "--port", "70000")
    assert "does not exist" in refused(*student, "--port", "0", "--examples", "no.json")
    assert "no model in" in refused("--student", str(tmp_path / "no"), "--port", "0")
    tiny_bert.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "has no question-answering head" in refused("--student", str(tmp_path), "--port", "0")


@pytest.fixture
def page(chromium, server, request):
    """The demo in a fresh window of ``request.param`` (width, height, scheme) that reaches this server alone."""
    width, height, scheme = getattr(request, "param", (1280, 800, "light"))
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    foreign, failures = [], []

    def only_here(route):
        if route.request.url.startswith((server.local_url, "data:", "blob:")):
            return route.continue_()
        foreign.append(route.request.url)
        return route.abort()

    context.route("**/*", only_here)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(server.local_url)
    page.locator("#student-context .highlighted").first.wait_for()
    yield page
    assert foreign == failures == []
    context.close()


def fill_and_ask(page, question, text):
    """Fill in and press the button."""
    page.fill("#context textarea", text)
    page.fill("#question :is(input, textarea)", question)
    page.click("#ask")


@pytest.mark.slow
def test_a_visitor_reads_both_answers_and_sees_them_in_the_text(page, folders):
    fill_and_ask(page, QUESTION, TEXT)
    for role, folder in folders.items():
        expected = answer(folder, QUESTION, TEXT)
        page.locator(f"#{role}-answer h2", has_text=expected.text).wait_for()
        assert page.inner_text(f"#{role}-answer h2") == expected.text
        marked = page.locator(f"#{role}-context .highlighted .text").all_text_contents()
        assert "".join(marked) == expected.text
        shown = page.inner_text(f"#{role}-answer .confidence")
        assert float(shown.strip("%")) == pytest.approx(100 * expected.score, abs=0.51)
        assert page.input_value(f"#{role}-latency :is(input, textarea)").endswith(" ms")
        assert page.inner_text(f"#{role}").endswith(" MiB")


@pytest.mark.slow
def test_an_example_is_filled_in_by_a_click(page, tokenizer):
    second = default_examples(tokenizer)[1]
    page.get_by_role("button", name=second.question).click()
    page.wait_for_function("text => document.querySelector('#context textarea').value === text", arg=second.context)
    assert page.input_value("#question :is(input, textarea)") == second.question


@pytest.mark.slow
def test_an_empty_question_is_told(page):
    fill_and_ask(page, "", TEXT)
    page.get_by_test_id("toast-text").get_by_text("The question is empty: fill it in.").wait_for()


@pytest.mark.slow
def test_markup_in_texts_stays_text(page):
    fill_and_ask(page, TRAP + " who?", f"The king {TRAP} was in the house {TRAP}")
    page.locator("#student-context", has_text="onerror").wait_for()
    assert page.locator("#student-context img, #student-context script, #student-answer img").count() == 0
    assert page.title() == "itrd demo"


@pytest.mark.slow
@pytest.mark.parametrize("page", WINDOWS, indirect=True, ids=lambda window: "-".join(map(str, window)))
def test_it_fits_every_window(page):
    fill_and_ask(page, QUESTION, "word" * 200 + TEXT * 20)
    page.locator("#student-context", has_text="wordword").wait_for()
    assert overflow(page) <= 0


@pytest.mark.slow
def test_a_student_alone(chromium, folders, tokenizer):
    with serving([Loaded.read("student", folders["student"])], default_examples(tokenizer)) as server:
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        page.goto(server.local_url)
        page.locator("#student-context .highlighted").first.wait_for()
        assert page.inner_text("h1") == "Ask the student" and page.locator("#teacher").count() == 0
        assert overflow(page) <= 0
        page.context.close()


def test_an_exported_model_tells_its_size(tmp_path, folders):
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    from itrd_nlp.export.export import export

    record = export(folders["student"], tmp_path / "onnx")
    mib = (tmp_path / "onnx/onnx/model.onnx").stat().st_size / 2**20
    size = Loaded.read("student", str(tmp_path / "onnx")).size()
    assert size == f"{record['parameters']:,} parameters, {mib:,.1f} MiB"
