import re
from pathlib import Path

import datasets
from PIL import Image

from fednano_flwr.data.registry import LAYOUTS, load_questions

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_documented_conversion_from_the_hub_is_readable(tmp_path, monkeypatch):
    def load_dataset(name: str, split: str) -> list[dict]:
        assert name == "derek-thomas/ScienceQA"
        plain = {
            "question": f"{split}?",
            "choices": ["yes", "no"],
            "answer": 1,
            "hint": "",
            "topic": "physics",
        }
        return [plain | {"image": Image.new("RGB", (2, 2))}, plain | {"image": None}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    exec(snippet, {})

    questions = load_questions("scienceqa", tmp_path / "scienceqa")
    assert [sample.question for sample in questions.train] == ["train?", "train?"]
    assert [sample.question for sample in questions.test] == ["test?", "test?"]
    assert [sample.image is None for sample in questions.train] == [False, True]
    assert not questions.skipped


def test_the_documented_layouts_are_those_the_errors_show():
    documented = {
        line.split()[0] for line in DOCS.splitlines() if line.startswith("<dataset.path>")
    }
    shown = {line.split()[0] for layout in LAYOUTS.values() for line in layout.splitlines()}
    assert documented == shown
