import re
from pathlib import Path

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from tests.data.conftest import png, settings
from tests.data.malformed import CASES, Malformed

DOCS = Path(__file__).resolve().parents[2] / "docs" / "own-data.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_malformed_input_costs_itself_and_is_named_with_its_file_and_row(tmp_path, case):
    (tmp_path / "a.png").write_bytes(png())
    file = tmp_path / case.name
    content = case.text if isinstance(case.text, bytes) else case.text.encode()
    file.write_bytes(content)
    own = {"path": str(file), "test_fraction": 0.5, "max_skipped": 0.5 if case.row else 0.0}
    dataset = settings(name=case.source, **own | case.settings)
    if not case.row:
        with pytest.raises(DataError, match=re.escape(case.said)) as caught:
            load_questions(dataset)
        assert str(file) in str(caught.value)
        return
    found = load_questions(dataset)
    assert len(found.train) == 1 and found.skipped == {case.said: 1}
    with pytest.raises(DataError, match=rf"{re.escape(case.said)} \({case.name}:{case.row}\)"):
        load_questions(settings(name=case.source, **own | {"max_skipped": 0.0}))


def test_the_documented_malformed_inputs_are_those_that_are_tested():
    section = DOCS.read_text("utf-8").split("## Malformed rows and files\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| (.*) \| (.*) \|$", section, re.MULTILINE)[1:] == rows(CASES)


def rows(cases: tuple[Malformed, ...]) -> list[tuple[str, str]]:
    return [(case.what, case.said if case.row else f"refused: … {case.said} …") for case in cases]
