"""What a model card says of each kind of model: how it is loaded, what it is for; and the papers of the methods."""

import inspect
from typing import NamedTuple

from transformers import PreTrainedModel


class Kind(NamedTuple):
    """A kind of model: the Hub's name of its task, its use and limits, and code that loads and calls it."""

    tag: str
    use: str
    code: str


TEXT_LOADING = """\
import torch
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{where}").eval()
tokenizer = AutoTokenizer.from_pretrained("{where}")
"""
ANSWERING = (
    TEXT_LOADING
    + """\
question, context = "Who wrote it?", "Ada wrote it in 1843."
inputs = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt"{options})
offsets = inputs.pop("offset_mapping")[0].tolist()
with torch.no_grad():
    output = model(**inputs)
scores = output.start_logits[0][:, None] + output.end_logits[0]  # of each start and end
inside = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])  # the context, not the question
allowed = inside[:, None] & inside & torch.ones_like(scores, dtype=torch.bool).triu().tril(29)
start, end = divmod(scores.masked_fill(~allowed, -torch.inf).argmax().item(), len(offsets))
print(context[offsets[start][0] : offsets[end][1]])
"""
)
CLASSIFYING = (
    TEXT_LOADING
    + """\
inputs = tokenizer("Ada wrote it in 1843.", truncation=True, return_tensors="pt"{options})
with torch.no_grad():
    scores = model(**inputs).logits[0]{scale}
print({{model.config.id2label[i]: score for i, score in enumerate(scores.tolist())}})
"""
)
TAGGING = (
    TEXT_LOADING
    + """\
inputs = tokenizer("Ada wrote it in 1843.", truncation=True, return_tensors="pt"{options})
with torch.no_grad():
    labels = model(**inputs).logits[0].argmax(-1).tolist()
print([(token, model.config.id2label[i]) for token, i in zip(inputs.tokens(), labels)])
"""
)
EMBEDDING = (
    TEXT_LOADING
    + """\
inputs = tokenizer(["Ada wrote it.", "Written by Ada."], padding=True, truncation=True, return_tensors="pt"{options})
with torch.no_grad():
    hidden = model(**inputs).last_hidden_state
real = inputs["attention_mask"].unsqueeze(-1)
embeddings = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1))  # means over the tokens
print((embeddings[0] @ embeddings[1]).item())
"""
)
IMAGE = """\
import torch
from transformers import AutoImageProcessor, {auto}
from transformers.image_utils import load_image
{networks}
model = {auto}.from_pretrained("{where}").eval()
processor = AutoImageProcessor.from_pretrained("{where}")
image = load_image("image.png")  # turned as its EXIF says
with torch.no_grad():
    logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])
"""
OURS = """\
from itrd_nlp import answer

print(answer("{where}", "Who wrote it?", "Ada wrote it in 1843.").text)
"""
SHELL = 'itrd predict {where} --question "Who wrote it?" --context "Ada wrote it in 1843."\n'

KINDS = {  # how the class of such a model ends
    "ForQuestionAnswering": Kind(
        "question-answering",
        "Extractive question answering: the answer is copied out of a text that is given with the question. It adds no "
        "knowledge of its own, cannot count or reason over several texts, and gives some span with high confidence "
        "where the text holds no answer, unless its training data had such questions.",
        ANSWERING,
    ),
    "ForSequenceClassification": Kind(
        "text-classification",
        "Classifying, or scoring, whole texts as the training data does. Texts beyond the model's length are cut, and "
        "every text gets some label, one that fits none included.",
        CLASSIFYING,
    ),
    "ForTokenClassification": Kind(
        "token-classification",
        "Labelling the words of texts with the labels of the training data. Texts beyond the model's length are cut.",
        TAGGING,
    ),
    "ForImageClassification": Kind(
        "image-classification",
        "Classifying images into the classes of the training data: every image gets one of them, one that shows none "
        "included. Other resolutions, crops and cameras than those of the training data cost accuracy.",
        IMAGE,
    ),
    "Model": Kind(
        "feature-extraction",
        "Embedding texts, whose similarity is the cosine of their embeddings. Texts beyond the model's length are cut.",
        EMBEDDING,
    ),
}
LIMITS = (
    "A student repeats the mistakes and the biases of its teacher and of its data, and adds some of its own. The "
    "results above are those of one validation set: measure it on your own data first."
)

BIBTEX = """\
@inproceedings{miles2022information,
  title     = {Information Theoretic Representation Distillation},
  author    = {Miles, Roy and Lopez Rodriguez, Adrian and Mikolajczyk, Krystian},
  booktitle = {British Machine Vision Conference (BMVC)},
  year      = {2022},
  url       = {https://arxiv.org/abs/2112.00459}
}
"""
SOURCES = {  # name of a loss -> its paper
    "itrd": "Miles, Lopez Rodriguez and Mikolajczyk: Information Theoretic Representation Distillation. BMVC 2022",
    "kd": "Hinton, Vinyals and Dean: Distilling the Knowledge in a Neural Network. 2015",
    "cosine": "Sanh et al.: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter. 2019",
    "textbrewer": "Yang et al.: TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language "
    "Processing. ACL 2020",
    "crd": "Tian, Krishnan and Isola: Contrastive Representation Distillation. ICLR 2020",
    "wcord": "Chen et al.: Wasserstein Contrastive Representation Distillation. CVPR 2021",
    "minilmv2": "Wang et al.: MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained "
    "Transformers. Findings of ACL 2021",
    "srd": "Miles and Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation. AAAI 2024",
    "vkd": "Miles, Elezi and Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections. CVPR 2024",
    "reviewkd": "Chen et al.: Distilling Knowledge via Knowledge Review. CVPR 2021",
}


def kind_of(model: PreTrainedModel) -> tuple[str, Kind] | None:
    """The class of transformers that loads such a model, and its kind; None for one that is of none of them."""
    name = type(model).__name__
    for ending, kind in KINDS.items():
        if name.endswith(ending):
            return f"AutoModel{ending.removesuffix('Model')}", kind
    return None


def loading_code(model: PreTrainedModel, auto: str, kind: Kind, where: str) -> str:
    """Python that loads a model with transformers alone and calls it.

    Args:
        where: its folder or Hub id.
    """
    config = model.config.to_dict()
    segments = "token_type_ids" in inspect.signature(model.forward).parameters
    scales = {"regression": "", "multi_label_classification": ".sigmoid()"}
    problem = "regression" if model.config.num_labels == 1 else config.get("problem_type")
    ours = str(config.get("architecture", "")).startswith("cifar_")
    return kind.code.format(
        auto=auto,
        where=where,
        options="" if segments else ", return_token_type_ids=False",
        scale=scales.get(str(problem), ".softmax(-1)"),
        networks="\nimport itrd_nlp.vision  # makes its network known to timm\n" if ours else "",
    )
