"""The demo over HTTP, and in a real browser."""

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

import tiny
from browser import WINDOWS, overflow, violations
from itrd_nlp.cli import demo
from itrd_nlp.cli.demo import Demo, Loaded, Server, default_examples, read_examples
from itrd_nlp.cli.main import main
from itrd_nlp.inference.answering import answer
from itrd_nlp.tasks.toy import build_tokenizer

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


def serving(models, examples):
    """A server at a free port, in a thread of its own."""
    server = Server(0)
    server.demo = Demo(models, examples)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def server(folders, tokenizer):
    models = [Loaded.read(role, folder) for role, folder in folders.items()]
    with serving(models, default_examples(tokenizer)) as server:
        yield server
        server.shutdown()


def get(server, path, body=None, **headers):
    """Status, text and headers of a reply."""
    content = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(server.url + path, body, {**content, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as reply:
        with reply:
            return reply.code, reply.read().decode(), reply.headers


def post(server, question, text):
    status, content, _ = get(server, "/answer", json.dumps({"question": question, "text": text}).encode())
    return status, json.loads(content)


def test_both_answer_as_the_library_does_with_what_they_cost(server, folders):
    status, reply = post(server, QUESTION, TEXT)
    assert status == 200 and [one["role"] for one in reply["answers"]] == ["teacher", "student"]
    for one in reply["answers"]:
        expected = answer(folders[one["role"]], QUESTION, TEXT)
        assert (one["text"], one["start"], one["end"]) == (expected.text, expected.start, expected.end)
        assert one["confidence"] == pytest.approx(expected.score, rel=1e-4) and one["ms"] > 0
    assert reply["answers"][0]["text"] != reply["answers"][1]["text"]
    models = json.loads(get(server, "/demo")[1])["models"]
    assert models[0]["parameters"] > models[1]["parameters"] > 0
    assert models[1]["mib"] == pytest.approx(models[1]["parameters"] * 4 / 2**20, rel=0.01)


def test_models_are_loaded_once(server, monkeypatch):
    monkeypatch.setattr(demo, "load_model", None)  # a call would fail
    monkeypatch.setattr(demo, "load_tokenizer", None)
    assert post(server, QUESTION, TEXT)[0] == post(server, QUESTION, TEXT + " Once more.")[0] == 200


@pytest.mark.parametrize(
    ("question", "text", "message"),
    [
        (" ", TEXT, "The question is empty"),
        (QUESTION, "\n", "The text is empty"),
        (QUESTION, "a " * 10_001, "The text has 20,002 characters: shorten it to 20,000"),
        (QUESTION, "a " * 2**20, "The text is too long"),
        ("why " * 100, TEXT, "The question has 400 characters"),
        (None, TEXT, "both text"),
    ],
)
def test_wrong_texts_are_told_in_one_line(server, question, text, message):
    status, reply = post(server, question, text)
    assert status == 400 and message in reply["error"] and "\n" not in reply["error"]


def test_requests_of_other_forms_and_other_sites_are_refused(server):
    body = json.dumps({"question": QUESTION, "text": TEXT}).encode()
    assert get(server, "/answer", body)[0] == 200
    assert get(server, "/answer", b"[1]")[0] == get(server, "/answer", b"{")[0] == get(server, "/", body)[0] == 400
    assert get(server, "/answer", body, **{"Content-Type": "text/plain"})[0] == 400  # what a form elsewhere may send
    assert get(server, "/answer", body, Host="elsewhere.example")[0] == get(server, "/", Host="[::1]")[0] == 403
    assert get(server, "/../demo.py")[0] == get(server, "/examples.json")[0] == 404


def test_half_a_character_and_a_failing_model_end_no_demo(server, monkeypatch, capsys):
    assert post(server, QUESTION, "The king \ud83d was in the house")[0] == 200
    with monkeypatch.context() as patch:
        patch.setattr(demo, "answer", lambda *_: 1 / 0)
        status, reply = post(server, QUESTION, TEXT)
    assert status == 500 and "The model failed: division by zero" in reply["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert post(server, QUESTION, TEXT)[0] == 200


def test_the_page_names_no_other_site_and_runs_only_its_own_script(server):
    for path in demo.PAGE:
        status, content, headers = get(server, path)
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
        assert "//" not in content.replace("http://www.w3.org/2000/svg", "").replace("\n// ", "").replace("; // ", "")
    assert "innerHTML" not in get(server, "/demo.js")[1]


def test_examples_are_the_file_s_or_suit_the_vocabulary(tmp_path, tokenizer):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Who is {i}?", "context": f"Text {i // 2}"} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_examples(str(path)) == [(f"Who is {2 * i}?", f"Text {i}") for i in range(3)]
    assert set(default_examples(tokenizer)[0].question.split()) >= {"Ada", "Lovelace"}
    toy = build_tokenizer()
    assert all(toy.unk_token_id not in toy(example.text).input_ids for example in default_examples(toy))


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
    page.foreign, page.failures = [], []

    def only_here(route):
        if route.request.url.startswith(server.url + "/"):
            return route.continue_()
        page.foreign.append(route.request.url)
        return route.abort()

    context.route("**/*", only_here)
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.on("console", lambda message: page.failures.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    page.wait_for_selector("#passage mark")
    yield page
    assert page.foreign == []
    context.close()


def ask(page, question, text):
    """Fill in, press the button, and wait for what comes."""
    page.fill("#text", text)
    page.fill("#question", question)
    page.click("#ask")
    page.wait_for_selector("#ask:text-is('Ask')")


@pytest.mark.slow
def test_a_visitor_reads_both_answers_and_sees_them_in_the_text(page, folders):
    ask(page, QUESTION, TEXT)
    for role, folder in folders.items():
        expected = answer(folder, QUESTION, TEXT)
        assert page.inner_text(f"#{role} .answer") == expected.text
        assert "".join(page.locator(f"#passage mark.{role}").all_text_contents()) == expected.text
        assert page.inner_text(f"#{role} .ms").endswith(" ms") and page.inner_text(f"#{role} .size").endswith(" MiB")
        shown = page.inner_text(f"#{role} .percent")
        assert float(shown.strip("> %")) == pytest.approx(100 * expected.score, abs=0.51)
    assert page.text_content("#passage") == TEXT
    assert "Different answers" in page.inner_text("#summary") and "smaller" in page.inner_text("#summary")
    assert page.failures == []


@pytest.mark.slow
def test_an_example_is_filled_in_and_another_asked_by_a_click(page):
    texts = [page.input_value("#text")]
    assert page.input_value("#question") == page.inner_text("#examples button >> nth=0")
    page.click("#examples button >> nth=1")
    assert page.input_value("#text") not in texts and page.input_value("#question")
    page.locator("#passage", has_text=page.input_value("#text")).wait_for()
    page.fill("#question", "Who?")
    page.press("#question", "Enter")
    page.wait_for_selector("#ask:text-is('Ask')")
    assert page.locator("#examples [aria-pressed=true]").count() == 0


@pytest.mark.slow
def test_an_empty_question_is_told_and_the_next_one_clears_it(page):
    ask(page, "", TEXT)
    assert page.inner_text("#error") == "The question is empty: ask something."
    ask(page, QUESTION, "")
    assert page.inner_text("#error") == "The text is empty: paste a paragraph."
    ask(page, QUESTION, TEXT)
    assert not page.is_visible("#error")


@pytest.mark.slow
def test_markup_in_texts_stays_text(page):
    ask(page, TRAP + " who?", f"The king {TRAP} was in the house {TRAP}")
    assert page.text_content("#passage") == f"The king {TRAP} was in the house {TRAP}"
    assert page.locator("#results img, #results script, #form script").count() == 0
    assert page.title() == "itrd demo" and page.failures == []


@pytest.mark.slow
@pytest.mark.parametrize("page", WINDOWS, indirect=True, ids=lambda window: "-".join(map(str, window)))
def test_it_fits_every_window_and_is_accessible(page):
    ask(page, QUESTION, "word" * 200 + TEXT * 20)
    assert overflow(page) <= 0
    assert page.evaluate("document.getElementById('results').getBoundingClientRect().top < innerHeight / 2 + 1")
    assert violations(page) == []


@pytest.mark.slow
def test_a_student_alone(chromium, folders, tokenizer):
    with serving([Loaded.read("student", folders["student"])], default_examples(tokenizer)) as server:
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        page.goto(server.url)
        page.wait_for_selector("#passage mark.student")
        assert page.inner_text("h1") == "Ask the student" and page.locator("#cards > *").count() == 1
        assert not page.is_visible("#summary") and overflow(page) <= 0
        server.shutdown()
        page.context.close()


def test_an_exported_model_tells_its_size(tmp_path, folders):
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    from itrd_nlp.export.export import export

    record = export(folders["student"], tmp_path / "onnx")
    facts = Loaded.read("student", str(tmp_path / "onnx")).facts()
    assert facts["parameters"] == record["parameters"] > 0
    assert facts["mib"] == (tmp_path / "onnx" / "model.onnx").stat().st_size / 2**20
