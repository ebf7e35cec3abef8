"""Image classifiers as a recipe names them."""

import json

import pytest
import torch
import transformers

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from transformers import AutoImageProcessor, AutoModelForImageClassification  # noqa: E402

from itrd_nlp.distillation.distiller import build_distiller  # noqa: E402
from itrd_nlp.distillation.feature_extractor import ForwardHooks  # noqa: E402
from itrd_nlp.distillation.layers import last_module, layer_modules  # noqa: E402
from itrd_nlp.distillation.stages import classifier_input, find_stages  # noqa: E402
from itrd_nlp.inference.saved_models import load_trained, saved_task  # noqa: E402
from itrd_nlp.training.arguments import ITRDArguments  # noqa: E402
from itrd_nlp.training.trainer import ITRDTrainer  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.models import load_image_model, preprocessing_of  # noqa: E402

NAMES = ["cat", "dog", "eel"]
VIT = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
SMALL = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 1]}
SWIN = {"timm": "swin_s3_tiny_224", "model_args": {"img_size": 32, "window_size": 4, "patch_size": 2, **SMALL}}
DEIT = {"timm": "deit_tiny_distilled_patch16_224", "model_args": {"img_size": 32, "depth": 1}}
SEQUENCER = {
    "timm": "sequencer2d_s",
    "model_args": {"layers": (1,) * 4, "embed_dims": (8, 16, 16, 16), "hidden_sizes": (4,) * 4},
}
POOLFORMER = {"model_type": "poolformer", "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}


def images(n=2):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", ["cifar_resnet20", {"timm": "cifar_resnet8x4"}, VIT, {"timm": "resnet10t"}])
def test_a_new_model_is_saved_and_found_again(source, tmp_path):
    model, complete = load_image_model(source, NAMES, seed=3)
    assert not complete and model(pixel_values=images()).logits.shape == (2, 3)
    twin, _ = load_image_model(source, NAMES, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    model.eval().save_pretrained(tmp_path)
    again, complete = load_image_model(str(tmp_path), NAMES, seed=0)
    assert complete and again.config.id2label == dict(enumerate(NAMES))
    torch.testing.assert_close(again.eval()(images()).logits, model(images()).logits)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(plain.eval()(images()).logits, model(images()).logits)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_vgg8", "cifar_resnet18_rbnn", "resnet10t"])
def test_new_weights_are_drawn_as_timm_draws_them(name):
    model, _ = load_image_model(name, NAMES, seed=5)
    torch.manual_seed(5)
    expected = timm.create_model(name, num_classes=3)
    for key, value in expected.state_dict().items():
        assert torch.equal(model.timm_model.state_dict()[key], value), key


def test_a_students_folder_tells_the_preprocessing_it_was_trained_with(tmp_path):
    seen = preprocessing_of("cifar_resnet20a")
    model, _ = load_image_model("cifar_resnet20", NAMES, 0, seen)
    model.save_pretrained(tmp_path)
    found = [preprocessing_of(source).description() for source in (str(tmp_path), "cifar_resnet20")]
    assert json.dumps(found[0]) == json.dumps(seen.description()) != json.dumps(found[1])


def test_a_folder_in_timms_own_format_is_loaded(tmp_path):
    network = timm.create_model("test_resnet.r160_in1k", num_classes=3)
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]  # which folders of the Hub lack
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_trained(str(tmp_path))
    torch.testing.assert_close(model(images()).logits, network.eval()(images()))


def test_other_classes_give_a_new_head(tmp_path):
    load_image_model("cifar_resnet20", NAMES, seed=0)[0].save_pretrained(tmp_path)
    model, complete = load_image_model(str(tmp_path), ["one", "two", "three", "four"], seed=0)
    assert not complete and model(images()).logits.shape == (2, 4)
    heads = [
        load_image_model(str(tmp_path), ["one", "two"], seed)[0].timm_model.get_classifier().weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_classifier_of_several_classes_an_image_is_refused_or_gets_another_head(tmp_path):
    sizes = {name: value for name, value in VIT.items() if name != "model_type"}
    config = transformers.ViTConfig(**sizes, num_labels=3, problem_type="multi_label_classification")
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is for multi_label_classification: expected a model that puts each image"):
        load_image_model(str(tmp_path), NAMES, seed=0)
    model, complete = load_image_model(str(tmp_path), NAMES[:2], seed=0)
    assert not complete and model.config.problem_type == "single_label_classification"


def test_a_checkpoint_is_loaded_strictly(tmp_path):
    trained = timm.create_model("cifar_resnet20", num_classes=3)
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": trained.state_dict()}, path)
    model, complete = load_image_model({"timm": "cifar_resnet20", "checkpoint": str(path)}, NAMES, seed=0)
    assert complete
    torch.testing.assert_close(model.timm_model.fc.weight, trained.fc.weight)
    for source, words in [
        ({"timm": "cifar_resnet32", "checkpoint": str(path)}, "expected the weights of cifar_resnet32 with 3 classes"),
        ({"timm": "cifar_resnet20", "checkpoint": "x.pth"}, "x.pth: no such file"),
        ({"timm": "cifar_resnet20", "chekpoint": str(path)}, "did you mean 'checkpoint'"),
        ({"timm": "cifar_resnet21"}, "timm has no model 'cifar_resnet21'; did you mean"),
        ("cifar_resnet21", "did you mean 'cifar_resnet"),
        ({**VIT, "hidden": 3}, "has no field 'hidden'"),
        ({"model_type": "vot"}, "expected the config of a new image classifier"),
        ({"timm": "cifar_resnet20", "model_args": {"depth": 3}}, "timm cannot make it"),
        ({"timm": "cifar_resnet20", "model_args": {"in_chans": 1}}, "in_chans 1: images are read in colour"),
        ({**VIT, "num_channels": 1}, "num_channels 1: images are read in colour"),
        ("resnet34.tv_in1k", "expected timm/resnet34.tv_in1k for its weights of the Hub, or resnet34"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            load_image_model(source, NAMES, seed=0)
        assert "\n" not in str(error.value)


def test_a_checkpoint_that_holds_code_is_refused(tmp_path):
    import argparse

    path = tmp_path / "resnet20_last.pth"
    torch.save({"opt": argparse.Namespace(x=1), "model": timm.create_model("cifar_resnet20").state_dict()}, path)
    with pytest.raises(UserError, match="expected the weights of cifar_resnet20"):
        load_image_model({"timm": "cifar_resnet20", "checkpoint": str(path)}, NAMES, seed=0)


def test_a_classifier_that_learned_from_a_teacher_keeps_its_head(tmp_path):
    """AutoModel has two classes for it."""
    torch.manual_seed(0)
    config = transformers.DeiTConfig(**{k: v for k, v in VIT.items() if k != "model_type"}, num_labels=3)
    config.id2label = dict(enumerate(NAMES))
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    loaded, complete = load_image_model(str(tmp_path), NAMES, seed=1)
    assert complete and torch.equal(loaded(images()).logits, model(images()).logits)
    assert saved_task(str(tmp_path)) == "images"
    with pytest.raises(UserError, match="takes no labels, it is for prediction alone: expected another class"):
        ITRDTrainer(loaded, args=ITRDArguments(str(tmp_path), use_cpu=True, bf16=False))


def test_preprocessing_is_the_models_own(tmp_path):
    seen = preprocessing_of("cifar_resnet20a")
    assert seen.size == (32, 32) and seen.mean == (0.485, 0.456, 0.406)
    assert preprocessing_of({"timm": "cifar_resnet20"}).mean == (0.5071, 0.4867, 0.4408)
    assert preprocessing_of(VIT).size == (32, 32)
    sized = {"timm": "vit_tiny_patch16_224", "model_args": {"img_size": 96}}
    assert preprocessing_of(sized).size == (96, 96)
    model, _ = load_image_model("cifar_resnet20a", NAMES, seed=0)
    model.save_pretrained(tmp_path / "timm")
    assert preprocessing_of(str(tmp_path / "timm")).mean == seen.mean
    assert AutoImageProcessor.from_pretrained(tmp_path / "timm").data_config["mean"] == seen.mean
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing says how it wants its images"):
        preprocessing_of(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "source,stages,width",
    [
        ("cifar_resnet20", 3, 64),
        ("cifar_vgg8", 4, 512),
        ("cifar_mobilenetv2_half", 4, 1280),
        ("cifar_resnet18_recu", 4, 512),
        ("cifar_vgg_small_recu", 3, 512),
        (VIT, 3, 16),
        (RESNET, 2, 16),
        ({"timm": "resnet10t"}, 4, 512),
        ("vgg11", 6, 4096),
        ({"timm": "repvgg_a0"}, 5, 1280),  # whose last stage is not a module with children
        ({"timm": "nf_regnet_b0"}, 4, 960),
        ({"model_type": "mobilevit", "image_size": 32}, 5, 640),  # stages of several kinds
    ],
)
def test_stages_and_what_enters_the_classifier(source, stages, width):
    model = load_image_model(source, NAMES, seed=0)[0].eval()
    found = find_stages(model)
    assert len(found.outputs) == len(found.preact) == stages
    assert len(layer_modules(model)) == stages + 2 and layer_modules(model)[-1] == last_module(model)
    with ForwardHooks(model, [*found.outputs, *found.preact, classifier_input(model)]) as hooks:
        model(pixel_values=images())
    assert hooks.features[-1].shape[1] == width


MOBILENET = {"model_type": "mobilenet_v2", "image_size": 32, "classifier_dropout_prob": 0.9}


@pytest.mark.parametrize(
    "source,read",
    [
        (MOBILENET, "dropout:input"),
        (
            {"timm": "vit_tiny_patch16_224", "model_args": {"img_size": 32, "drop_rate": 0.9}},
            "timm_model.head_drop:input",
        ),
        ({"timm": "convnext_atto", "model_args": {"drop_rate": 0.9}}, "timm_model.head.drop:input"),
        ({"timm": "resnet10t"}, "timm_model.fc:input"),
    ],
)
def test_features_are_read_before_a_dropout_that_feeds_the_classifier(source, read):
    model = load_image_model(source, NAMES, seed=0)[0].train()
    assert classifier_input(model) == read
    with ForwardHooks(model, [read]) as hooks:
        model(pixel_values=images())
    zeros = (hooks.features[0] == 0).float().mean()
    assert zeros < 0.6  # of 0.9 that the dropout would leave, in place or not


def test_a_dropout_that_hooks_cannot_see_is_refused():
    model = load_image_model({"timm": "resnet10t", "model_args": {"drop_rate": 0.2}}, NAMES, seed=0)[0]
    with pytest.raises(UserError, match="resnet10t has drop_rate 0.2 before its classifier.*: expected 0"):
        classifier_input(model)


@pytest.mark.parametrize(
    "source,width,words",
    [
        (SWIN, 32, "channels last"),
        (POOLFORMER, 16, "2 lists of stages or layers"),
        (SEQUENCER, 16, "channels last"),  # its classifier pools first
    ],
)
def test_where_stages_cannot_be_read_the_last_layer_can(source, width, words):
    model = load_image_model(source, NAMES, seed=0)[0].eval()
    with pytest.raises(UserError, match=words):
        layer_modules(model)
    with ForwardHooks(model, [last_module(model)]) as hooks:
        model(pixel_values=images())
    assert hooks.features[0].shape == (len(images()), width)


@pytest.mark.parametrize(
    "name,words",
    [
        ("volo_d1_224", r"gives 4 channels at timm_model.network.0, expected 192: .*layer_map last"),  # channels last
        ("hrnet_w18_small", r"gives 16 channels at timm_model.stage2, expected 256"),  # a list of maps
    ],
)
def test_stages_with_other_channels_than_timm_says_are_refused(name, words):
    arguments = {"model_args": {"img_size": 32}} if "volo" in name else {}
    teacher = load_image_model({"timm": name, **arguments}, NAMES, seed=0)[0].eval()
    student = load_image_model("cifar_resnet8x4", NAMES, seed=0)[0]
    batch, options = {"pixel_values": images()}, {"losses": {"itrd": {}}, "task_weight": 0}
    with pytest.raises(UserError, match=words):
        build_distiller(student, teacher, batch, layer_map=[[1, 1]], **options)
    build_distiller(student, teacher, batch, layer_map="last", **options)


def test_new_models_take_what_their_kind_takes():
    assert preprocessing_of({"model_type": "vit"}, side=500).size == (224, 224)
    assert [preprocessing_of({"model_type": "resnet"}, side).size[0] for side in (32, 4000)] == [32, 224]


def test_two_classifiers_are_refused():
    model = load_image_model(DEIT, NAMES, seed=0)[0]
    with pytest.raises(UserError, match=r"has 2 classifiers for 3 classes \(timm_model.head, timm_model.head_dist\)"):
        last_module(model)


def test_classes_in_another_order_are_refused(tmp_path):
    load_image_model("cifar_resnet20", ["dog", "cat"], seed=0)[0].save_pretrained(tmp_path)
    assert load_image_model(str(tmp_path), ["Dog", "cat"], seed=0)[1]
    with pytest.raises(UserError, match="has the classes dog, cat, the data cat, dog: expected the same in one order"):
        load_image_model(str(tmp_path), ["cat", "dog"], seed=0)


def test_models_of_grey_images_are_refused(tmp_path):
    config = transformers.ViTConfig(**{**VIT, "num_channels": 1}, id2label=dict(enumerate(NAMES)))
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    made = timm.create_model("cifar_resnet20", num_classes=3, in_chans=1)
    wrapped = transformers.TimmWrapperConfig(architecture="cifar_resnet20", model_args={"in_chans": 1}, num_labels=3)
    wrapped.pretrained_cfg = {**made.pretrained_cfg, "input_size": (1, 32, 32)}
    transformers.TimmWrapperForImageClassification(wrapped).save_pretrained(tmp_path / "timm")
    for folder in ("vit", "timm"):
        with pytest.raises(UserError, match="1: images are read in colour, expected 3"):
            load_image_model(str(tmp_path / folder), NAMES, seed=0)
