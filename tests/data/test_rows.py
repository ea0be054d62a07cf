import json
from pathlib import Path

import pytest

from fednano_flwr.data import rows
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.rows import NOT_AN_OBJECT, Row, column_names, read_rows

ROWS = [{"a": [1, {"b": '"]},'}]}, {"ä": "\n" * 20}, 12345, {}, "text", [{"a": 1}], {"a": None}]


@pytest.mark.parametrize("chunk", [8, 9, 11, 23, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_json_list_is_the_same_wherever_it_is_cut(
    tmp_path, monkeypatch, chunk, indent, ascii_only
):
    monkeypatch.setattr(rows, "CHUNK", chunk)
    file = tmp_path / "rows.json"
    file.write_text("\ufeff \n" + json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only) + " \n")
    expected = [one if isinstance(one, dict) else NOT_AN_OBJECT for one in ROWS]
    assert list(read_rows(file)) == [Row(f":{n}", one) for n, one in enumerate(expected, start=1)]
    assert column_names(file) == ["a", "ä"]


@pytest.mark.parametrize(
    "text", ["[", "[{}", "[{},", "[{}] []", "[{}]}", '[{"a": 1', "[{} x]", "[1"]
)
def test_a_json_list_without_its_end_or_with_more_after_it_is_refused(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=r"rows\.json is not valid JSON from its row \d on"):
        list(read_rows(tmp_path / "rows.json"))


def test_a_list_that_is_broken_early_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 16)
    monkeypatch.setattr(rows, "LONGEST_ROW", 64)
    (tmp_path / "rows.json").write_text('[{"a": "' + "x" * 10_000 + '"}]')
    with pytest.raises(DataError, match="row 1 on"):
        list(read_rows(tmp_path / "rows.json"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comma.csv", "a,b\n1,x\n"),
        ("semicolon.csv", "a;b\n1;x\n"),
        ("tab.tsv", "a\tb\n1\tx\n"),
        ("blank lines.csv", "a,b\n\n1,x\n\n"),
        ("carriage returns.csv", "a,b\r\n1,x\r\n"),
        ("lines.json", '{"a": "1", "b": "x"}\n\n'),
        ("lines.jsonl", '{"a": "1", "b": "x"}\n \n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_is_read_in_every_common_form(tmp_path: Path, name, content, encoding):
    (tmp_path / name).write_text(content, encoding=encoding, newline="")
    values = [row.values for row in read_rows(tmp_path / name)]
    assert values == [{"a": "1", "b": "x"}] and column_names(tmp_path / name) == ["a", "b"]
