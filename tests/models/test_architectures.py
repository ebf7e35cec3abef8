"""Each architecture that transformers has a head for, as teacher and as student: read right, or refused in one line."""

import random

import pytest
import transformers

from architectures import HEADS, ROLES, judge, kinds

# The version with which all were judged; another one adds and changes architectures.
JUDGED = "5.24"
# what cannot be made small by the names of its config's fields, or needs a library that is not installed
UNMAKEABLE = {
    "cohere_compass_text": "its layers name a kind of attention that the small config lacks",
    "dinat": "needs natten",
    "efficientnet": "63 million parameters by a compound scaling that no field sets",
    "glm": "8 billion parameters, whose sizes do not follow the names of its fields",
    "glm4": "as glm",
    "hiera": "its masks are sized for pictures of 224 pixels",
    "layoutlmv2": "needs detectron2",
    "lxmert": "200 million parameters, whose layers have fields of their own",
    "mistral4": "118 billion parameters, whose sizes do not follow the names of its fields",
    "perceiver": "272 million parameters, in latents of their own",
    "qwen3_5": "as mistral4, 7 billion parameters",
    "qwen3_asr": "as mistral4, 11 billion parameters",
    "siglip2": "93 million parameters, nested in a config for pictures",
    "t5": "its heads need a decoder_start_token_id, which the small config lacks",
    "xmod": "92 million parameters, in adapters of their own",
    "zamba": "as mistral4, 7 billion parameters",
    "zamba2": "as mistral4, 2 billion parameters",
}
CASES = [(head, kind) for head in (*HEADS, "HEADLESS") for kind in kinds(head)]
DRAWN = random.Random(0).sample(CASES, 3)
RIGHT = [
    ("QUESTION_ANSWERING", "roberta"),
    ("HEADLESS", "mpnet"),
    *(("HEADLESS", kind) for kind in ("esm", "megatron-bert", "roberta-prelayernorm", "xlm-roberta-xl")),
    ("IMAGE_CLASSIFICATION", "vit"),
]


def outcomes(head, kind):
    """What was found for each role; skips what is not judged."""
    judged = transformers.__version__.startswith(f"{JUDGED}.")
    found = judge(head, kind)
    for role in ROLES:
        outcome, reason = found[role]
        if outcome == "not makeable" and (kind in UNMAKEABLE or not judged or reason.startswith("ImportError")):
            pytest.skip(f"{kind}: {reason}")
        if outcome not in ("right", "refused") and not judged:
            pytest.skip(f"{kind} as {role} with transformers {transformers.__version__}, not judged yet: {reason}")
        assert outcome in ("right", "refused"), f"{kind} as {role}: {outcome}, {reason}"
    return [found[role].outcome for role in ROLES]


@pytest.mark.parametrize("head,kind", DRAWN)
def test_a_drawn_architecture(head, kind):
    outcomes(head, kind)


@pytest.mark.parametrize("head,kind", RIGHT)
def test_a_common_architecture_is_right_in_both_roles(head, kind):
    assert outcomes(head, kind) == ["right", "right"]


@pytest.mark.slow
@pytest.mark.parametrize("head,kind", [case for case in CASES if case not in DRAWN])
def test_an_architecture(head, kind):
    outcomes(head, kind)


@pytest.mark.slow
def test_what_cannot_be_judged_is_still_so():
    if not transformers.__version__.startswith(f"{JUDGED}."):
        pytest.skip(f"judged with transformers {JUDGED}, not {transformers.__version__}")
    assert len(UNMAKEABLE) <= 20
    for kind in UNMAKEABLE:
        found = [judge(head, kind)["teacher"].outcome for head, other in CASES if other == kind]
        assert "not makeable" in found, f"{kind} can be judged: take it off the list"
