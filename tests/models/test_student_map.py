"""The map of a student's parts: the printed lines, and the origin of each part."""

from itrd_nlp.models.student_map import describe_map
from itrd_nlp.models.students import cut_student, student_from_teacher
from models.test_students import make


def test_the_printed_map(capsys):
    teacher = make("bert")
    student = student_from_teacher(teacher, "even:2")
    before, after = teacher.num_parameters(), student.num_parameters()
    assert capsys.readouterr().out.splitlines() == [
        "BertForQuestionAnswering: 2 of 6 layers",
        "  embeddings <- copied",
        "  student layer 1 <- teacher layer 3 (index 2)",
        "  student layer 2 <- teacher layer 6 (index 5)",
        "  qa_outputs <- copied",
        f"  parameters: {before:,} -> {after:,} ({round(100 * after / before)}%)",
    ]
    student_from_teacher(teacher, "even:2", verbose=False)
    assert capsys.readouterr().out == ""


def test_the_map_names_what_the_student_has_no_place_for():
    _, student_map = cut_student(make("electra"), "first:2", hidden_size=8, init="random")
    assert student_map.parts["embeddings_project"] == "dropped"
    assert "embeddings_project <- dropped" in describe_map(student_map)


def test_the_map_names_the_weights_that_start_afresh():
    _, student_map = cut_student(make("modernbert"), "first:2", mlp_bias=True)
    assert student_map.parts["student layer 1"] == "teacher layer 1 (index 0); new: mlp.Wi.bias, mlp.Wo.bias"
