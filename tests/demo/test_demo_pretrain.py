import json

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fednano_demo.ablation import SETTINGS, ablate
from fednano_demo.adapting import Recipe as AdapterRecipe
from fednano_demo.card import AblationFacts, record_ablation
from fednano_demo.losses import alignment_loss
from fednano_demo.pretrain import pretrain
from fednano_demo.training import Recipe

TINY = Recipe(steps=3, vision_steps=3, picture_pool=52, text_pool=16, test_per_skill=4)


def test_pretraining_writes_a_folder_that_loads_and_adapts(tmp_path):
    accuracy = pretrain(tmp_path, recipe=TINY)
    assert len(accuracy) == 15 and all(0 <= share <= 1 for share in accuracy.values())
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.pad_token == "<pad>"
    assert "| counting |" in (tmp_path / "README.md").read_text()

    recipe = AdapterRecipe(epochs=1)
    result = ablate(tmp_path, [0], recipe, train_size=32, test_size=30)
    assert list(result) == list(SETTINGS)
    facts = AblationFacts(vars(recipe), "- words", [0], 32, 30, 1.0, 1, result)
    record_ablation(tmp_path, facts)
    assert "| both |" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "ablation.json").read_text())["accuracy"] == result


def test_pretraining_twice_with_one_seed_gives_the_same_weights(tmp_path):
    states = []
    for name in ("first", "second"):
        pretrain(tmp_path / name, seed=1, recipe=TINY)
        states.append(LlavaForConditionalGeneration.from_pretrained(tmp_path / name).state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_alignment_loss_of_uninformative_features_is_that_of_guessing():
    features, labels = torch.zeros(2, 9, 8), torch.zeros(2, 9, 2, dtype=torch.int64)
    loss = alignment_loss(features, labels, torch.randn(300, 8))
    guesses = torch.tensor([13.0, 6.0, 9.0])  # things, colours, places
    torch.testing.assert_close(loss, guesses.log().sum())
