"""From text to answer with a small random model."""

import pytest
import torch

import tiny
from itrd_nlp.inference.answering import answer, answer_many
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.tasks.question_answering.data import read_questions
from itrd_nlp.utils.errors import UserError

CONTEXT = "The king was in the river house of the city. " * 12
WINDOWS = {"max_length": 64, "doc_stride": 16}


def test_answers_with_a_piece_of_the_context(tiny_bert, tokenizer):
    found = answer(tiny_bert, "Who was in the river?", CONTEXT, tokenizer, **WINDOWS)
    assert found.text == CONTEXT[found.start : found.end] != ""
    assert 0.0 < found.score <= 1.0


def test_one_window_equals_the_model_by_hand(tiny_bert, tokenizer):
    context = "The king was in the house"
    tokens = tokenizer("Who?", context, return_tensors="pt", return_offsets_mapping=True)
    offsets, parts = tokens.pop("offset_mapping")[0].tolist(), tokens.sequence_ids(0)
    with torch.no_grad():
        output = tiny_bert(**tokens)
    starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
    inside = [token for token, part in enumerate(parts) if part == 1]
    spans = [(starts[i] + ends[j], offsets[i][0], offsets[j][1]) for i in inside for j in inside if i <= j]
    score, start, end = max(spans)
    found = answer(tiny_bert, "Who?", context, tokenizer, n_best=100)
    assert (found.start, found.end) == (start, end)
    total = torch.logsumexp(torch.tensor([span[0] for span in spans]), 0).item()
    assert found.score == pytest.approx(torch.tensor(score - total).exp().item(), rel=1e-4)
    assert found.no_answer_score == pytest.approx(starts[0] + ends[0] - score, abs=1e-4)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_hold_an_example_or_more(tiny_bert, tokenizer, size):
    with pytest.raises(UserError, match=f"batch_size {size}: expected 1 or more"):
        answer_many(tiny_bert, ["Who?"], [CONTEXT], tokenizer, batch_size=size)


def test_models_and_tokenizers_of_another_kind_are_one_line(tiny_bert, tokenizer):
    for model, given, words in (
        (tiny.bert("classes"), tokenizer, "BertForSequenceClassification cannot answer"),
        (torch.compile(tiny_bert), tokenizer, "a model of type OptimizedModule: expected a folder"),
        (None, tokenizer, "a model of type NoneType"),
        (tiny_bert, "folder", "tokenizer 'folder': expected one of transformers"),
    ):
        with pytest.raises(UserError, match=words):
            answer(model, "Who?", CONTEXT, given)


def test_many_equals_one_by_one_in_any_batch(tiny_bert, tokenizer):
    questions = ["Who?", "Where was the king?", "What is it?", "Who was in the house of the city?"]
    contexts = [CONTEXT, "The city.", CONTEXT[:100], CONTEXT[:250]]
    together = answer_many(tiny_bert, questions, contexts, tokenizer, batch_size=3, progress=False, **WINDOWS)
    for found, question, context in zip(together, questions, contexts, strict=True):
        alone = answer(tiny_bert, question, context, tokenizer, **WINDOWS)
        assert found[0] == alone[0]
        assert found[1:] == pytest.approx(alone[1:], abs=1e-4)


def test_no_answer_is_given_only_where_allowed(tiny_bert, tokenizer):
    with torch.no_grad():
        tiny_bert.qa_outputs.weight.zero_()
        tiny_bert.qa_outputs.bias.zero_()
        texts = ("Who?", "The king was in the house", tokenizer)
        assert answer(tiny_bert, *texts, allow_no_answer=True).text != ""  # a tie is answered
        hidden = tiny_bert.bert(**tokenizer(*texts[:2], return_tensors="pt"))[0][0]
        tiny_bert.qa_outputs.weight.copy_((hidden[0] - hidden[1:].mean(0)).expand(2, -1))
    none = answer(tiny_bert, *texts, allow_no_answer=True)
    assert (none.text, none.start, none.end) == ("", 0, 0)
    assert none.no_answer_score > 0
    assert answer(tiny_bert, *texts).text != ""


def test_mode_is_restored_and_dropout_off(tiny_bert, tokenizer):
    tiny_bert.train()
    first, second = (answer(tiny_bert, "Who?", CONTEXT, tokenizer, **WINDOWS) for _ in range(2))
    assert first == second
    assert tiny_bert.training
    assert all(parameter.grad is None for parameter in tiny_bert.parameters())


def test_windows_default_to_what_the_model_takes(tiny_bert, tokenizer):
    texts = ("Who?", CONTEXT, tokenizer)
    assert answer(tiny_bert, *texts) == answer(tiny_bert, *texts, max_length=384, doc_stride=128)
    tiny_bert.bert.embeddings.position_embeddings = torch.nn.Embedding(100, 32)
    assert answer(tiny_bert, *texts) == answer(tiny_bert, *texts, max_length=96, doc_stride=32)


def test_answers_a_file_of_questions(tiny_bert, tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Who?", "context": "The king"}')
    data = read_questions(str(tmp_path / "a.jsonl"))
    found = answer_many(tiny_bert, data["question"], data["context"], tokenizer)
    assert found == [answer(tiny_bert, "Who?", "The king", tokenizer)]


def test_a_saved_folder_answers_alike(tiny_bert, tokenizer, tmp_path):
    tiny_bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    from_folder = answer(tmp_path, "Who?", CONTEXT, **WINDOWS)
    assert from_folder == answer(tiny_bert, "Who?", CONTEXT, tokenizer, **WINDOWS)


def test_refuses_folders_that_cannot_answer(tiny_bert, tokenizer, tmp_path):
    with pytest.raises(UserError, match="no model in .*nowhere'"):
        answer(tmp_path / "nowhere", "Who?", CONTEXT)
    with pytest.raises(UserError, match="no model in .*: expected a folder with config and weights") as caught:
        answer(tmp_path, "Who?", CONTEXT)
    assert "\n" not in str(caught.value)
    tiny_bert.bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no question-answering head.*qa_outputs.weight"):
        answer(tmp_path, "Who?", CONTEXT)
    tiny_bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        answer(tmp_path, "Who?", CONTEXT)
    (tmp_path / "my-teacher").mkdir()
    with pytest.raises(UserError, match="neither a folder here.*did you mean 'my-teacher'"):
        load_tokenizer(tmp_path / "my-techer")


@pytest.mark.parametrize(
    ("questions", "contexts", "message"),
    [
        (["Who?", 7], ["a", "b"], "question 2 of 2 is 7: expected text"),
        (["Who?"], [None], "context 1 of 1 is None: expected text"),
        (["Who?"], ["a", "b"], "two lists of the same length"),
        ("Who?", "text", "two lists"),
    ],
)
def test_refuses_bad_texts(tiny_bert, tokenizer, questions, contexts, message):
    with pytest.raises(UserError, match=message):
        answer_many(tiny_bert, questions, contexts, tokenizer)


def test_a_blank_context_among_many_gives_no_answer(tiny_bert, tokenizer):
    """Alone, it is refused, as is a blank question."""
    answers = answer_many(tiny_bert, ["Who?", " ", "Who?"], [CONTEXT, CONTEXT, ""], tokenizer)
    assert answers[0].text and answers[1].text and not answers[2].text
    for question, context in ((" ", CONTEXT), ("Who?", "")):
        with pytest.raises(UserError, match="(question|context) 1 of 1 is '.?': expected text"):
            answer(tiny_bert, question, context, tokenizer)


def test_refuses_windows_and_tokenizers_the_model_cannot_take(tiny_bert, tokenizer):
    tiny_bert.bert.embeddings.position_embeddings = torch.nn.Embedding(128, 32)
    with pytest.raises(UserError, match="exceeds the model's 128 positions: pass max_length=128"):
        answer(tiny_bert, "Who?", CONTEXT, tokenizer, max_length=129)
    tiny_bert.resize_token_embeddings(50)
    with pytest.raises(UserError, match="its table of embeddings 50 rows"):
        answer(tiny_bert, "Who?", CONTEXT, tokenizer, **WINDOWS)
