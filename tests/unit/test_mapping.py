"""Mappings of a recipe: what they make of a row, what they refuse, and that no row is lost."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsmith.config import SourceConfig
from chatsmith.data.files import Row
from chatsmith.data.mapping import Dropped, reader
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import as_spec
from chatsmith.data.templates import fill
from chatsmith.errors import ConfigError, DataError
from chatsmith.resolve import resolve
from chatsmith.types import Answer, Message, Record

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
PROMPT = (Message("user", "Name a colour."),)


def outcomes(row: Any, **table: Any) -> list[Record | Dropped]:
    return list(reader(SourceConfig(source="x.jsonl", **table))(Row("x.jsonl:1", row)))


def record(row: Any, **table: Any) -> Record:
    (outcome,) = outcomes(row, **table)
    assert isinstance(outcome, Record), outcome
    return outcome


def refusal(row: Any, **table: Any) -> str:
    (outcome,) = outcomes(row, **table)
    assert isinstance(outcome, Dropped)
    assert not outcome.wanted
    return outcome.reason


def asked(prompt: str, *answers: tuple[str, float | None]) -> Record:
    return Record((Message("user", prompt),), tuple(Answer(*answer) for answer in answers), origin="x.jsonl:1")


# Templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{a} and {b}", "A and 2"),
        ("{c.d}{c.e[1]}", "Dtwo"),
        ("{c.e}", ["one", "two"]),
        ("{f[].g}", [1, 2]),
        ("{f[1].g}", 2),
        ("{No. of}", 7),
        ("{{{a}}} {{a}}", "{A} {a}"),
        ("plain", "plain"),
        ("", ""),
        ("{yes}/{x}", "true/1.5"),
        (["{a}", 3], ["A", 3]),
        ({"by": "b", "1": "{missing}", "2": "{a}!"}, "A!"),
        ({"by": "yes", "true": "{b}", "false": ""}, 2),
    ],
)
def test_template_is_filled_from_names_and_indices(template: Any, expected: object) -> None:
    row = {"a": "A", "b": 2, "c": {"d": "D", "e": ["one", "two"]}, "f": [{"g": 1}, {"g": 2}], "No. of": 7, "x": 1.5}
    assert fill(template, row | {"yes": True}) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{Quetion}", 'there is no column "Quetion"; did you mean "Question"? There are Question, n, list, inner'),
        ("{zzz}", 'there is no column "zzz". There are Question, n, list, inner'),
        ("{inner.aa}", '"inner" has no field "aa"; did you mean "a"? There are a'),
        ("{n}", '"n" is null'),
        ("{list[3]}", '"list" has 1 items, so there is no list[3]'),
        ("{inner[0]}", '"inner" is an object, not a list'),
        ("{Question.x}", '"Question" is a string, not an object with a field "x"'),
        ("{list} {list}", '"list" is a list, not text or a number; name one item of it, as in {list[0]}'),
    ],
)
def test_missing_and_wrong_values_are_named_with_what_there_is(template: str, words: str) -> None:
    assert refusal({"Question": "Why?", "n": None, "list": [1], "inner": {"a": 1}}, prompt=template) == words


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"prompt": "{a"}, "single {"),
        ({"prompt": "a} b"}, "single }"),
        ({"prompt": "{}"}, '"" is no path'),
        ({"prompt": "{a..b}"}, "is no path"),
        ({"prompt": "{__import__('os').system('x')[x]}"}, "is no path"),
        ({"prompt": {"1": "{a}"}}, 'as by = "column"'),
        ({"prompt": {"by": "a"}}, "nothing to choose from"),
        ({"prompt": "{p}", "answers": ["{a}", "{b["]}, "answers: "),
        ({"system": "{a"}, "system: "),
        ({"format": "alpacca"}, 'unknown format "alpacca"; known: preference, '),
        ({"rows": "data"}, 'rows = "data" must name lists'),
        ({"rows": "[]"}, "must name lists"),
        ({"function": "missing.py:f"}, "no such file"),
        ({"function": "json:nothing"}, "has no function 'nothing'"),
        ({"function": "nothing"}, "names no function"),
    ],
)
def test_mapping_that_cannot_be_read_is_an_error_before_the_first_row(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        reader(SourceConfig(source="x.jsonl", **table))
    assert words in str(error.value)
    assert "x.jsonl" in str(error.value)


# What becomes a record


def test_each_kind_of_mapping_gives_its_record() -> None:
    row = {"q": "Why?", "a": "So.", "b": "No.", "n": 3, "s": [4, 2], "t": ["So.", "No."]}
    assert record(row, prompt="{q}") == asked("Why?")
    assert record(row, prompt="{q}", answer="{n}") == asked("Why?", ("3", None))
    assert record(row, prompt="{q}", chosen="{a}", rejected="{b}") == asked("Why?", ("So.", 1.0), ("No.", 0.0))
    assert record(row, prompt="{q}", answers=["{a}", "{b}"]) == asked("Why?", ("So.", None), ("No.", None))
    assert record(row, prompt="{q}", answers=["{a}", "{b}"], scores=["{n}", 1]) == asked(
        "Why?", ("So.", 3.0), ("No.", 1.0)
    )
    assert record(row, prompt="{q}", answers="{t}", scores="{s}") == asked("Why?", ("So.", 4.0), ("No.", 2.0))
    assert record(row, text="{q} {a}") == Record(text="Why? So.", origin="x.jsonl:1")
    assert record(row, prompt="{q}").fields == row


def test_scores_of_a_table_of_text_are_numbers() -> None:
    row = {"q": "Why?", "a": "So.", "b": "No.", "x": "4.5", "y": "?"}
    mapping: dict[str, Any] = {"prompt": "{q}", "answers": ["{a}", "{b}"]}
    assert record(row, **mapping, scores=["{x}", "1"]).answers[0].score == 4.5
    assert "the score '?' is no number" in refusal(row, **mapping, scores=["{x}", "{y}"])


def test_choice_by_a_column_takes_the_side_that_its_value_names() -> None:
    table: dict[str, Any] = {
        "prompt": "{q}",
        "chosen": {"by": "better", "A": "{a}", "B": "{b}"},
        "rejected": {"by": "better", "A": "{b}", "B": "{a}"},
    }
    row = {"q": "Why?", "a": "So.", "b": "No.", "better": "B"}
    assert record(row, **table) == asked("Why?", ("No.", 1.0), ("So.", 0.0))
    assert refusal(row | {"better": "C"}, **table) == "\"better\" is 'C', and the mapping has a choice for A, B alone"


def test_messages_are_read_under_other_names_and_roles() -> None:
    row = {"talk": [{"who": "customer", "words": "Name a colour."}, {"who": "agent", "words": "Red."}]}
    table: dict[str, Any] = {"messages": "{talk}", "role": "who", "content": "words"}
    roles = {"customer": "user", "agent": "assistant"}
    assert record(row, **table, roles=roles) == asked("Name a colour.", ("Red.", None))
    assert "is 'customer'; the roles are" in refusal(row, **table)
    assert "is 'agent'; the roles are" in refusal(row, **table, roles={"customer": "user"})


def test_roles_and_system_text_go_with_rows_of_a_known_format() -> None:
    row = {"conversations": [{"from": "boss", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}], "s": "Red"}
    mapped = record(row, roles={"boss": "user"}, system="Prefer {s}.")
    assert mapped.prompt == (Message("system", "Prefer Red."), *PROMPT)
    assert mapped.fields == row
    pair = {"context": row["conversations"][:1], "chosen": row["conversations"][1:], "rejected": "Seven."}
    assert record(pair, roles={"boss": "user"}).answers == (Answer("Red.", 1.0), Answer("Seven.", 0.0))
    own = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Name a colour."}]}
    assert record(own, system="Prefer red.").prompt[0] == Message("system", "Be kind.")
    assert "plain text has no place for" in refusal("Once.", system="Prefer red.")


def test_nested_lists_are_opened_with_the_fields_around_them() -> None:
    row = {
        "version": 1,
        "data": [
            {"title": "A", "paragraphs": [{"context": "c1", "qas": [{"q": "q1", "id": 1}, {"q": "q2", "id": 2}]}]},
            {"title": "B", "paragraphs": [{"context": "c2", "qas": []}, {"context": "c3"}, "c4"]},
            {"title": "C", "paragraphs": [{"context": "c5", "title": "own", "qas": [{"q": None}]}]},
        ],
    }
    found = outcomes(row, rows="data[].paragraphs[].qas[]", prompt="{title} {context} {q}")
    assert [outcome.prompt[0].content for outcome in found if isinstance(outcome, Record)] == ["A c1 q1", "A c1 q2"]
    assert [(outcome.origin, outcome.reason.split(".")[0]) for outcome in found if isinstance(outcome, Dropped)] == [
        ("x.jsonl:1.data[1].paragraphs[0]", '"qas" is an empty list'),
        ("x.jsonl:1.data[1].paragraphs[1]", 'there is no column "qas"'),
        ("x.jsonl:1.data[1].paragraphs[2]", 'there is no column "qas"'),
        ("x.jsonl:1.data[2].paragraphs[0].qas[0]", '"q" is null'),
    ]
    first = found[0]
    assert isinstance(first, Record)
    assert first.origin == "x.jsonl:1.data[0].paragraphs[0].qas[0]"
    assert first.fields == {"version": 1, "title": "A", "context": "c1", "q": "q1", "id": 1}
    assert [
        r.text for r in outcomes({"texts": ["a", "b"]}, rows="texts[]", text="{texts}") if isinstance(r, Record)
    ] == [
        "a",
        "b",
    ]
    assert outcomes({"in": {"list": [{"prompt": "p"}]}}, rows="in.list[]")[0] == Record(
        (Message("user", "p"),), origin="x.jsonl:1.in.list[0]"
    )
    assert refusal("words", rows="data[]") == 'the record is no object with a list "data"'


# Functions


FUNCTIONS = """
from chatsmith.types import Answer, Message, Record

def make(row):
    kind = row["kind"]
    if kind == "record":
        return Record((Message("user", row["q"]),), (Answer("So.", 2.0),), fields={"gold": 1})
    if kind == "row":
        return {"prompt": row["q"], "answer": "So."}
    if kind == "two":
        return [{"prompt": row["q"]}, None, {"prompt": "And?"}]
    if kind == "none":
        return None
    if kind == "empty":
        return []
    if kind == "half":
        return Record((Message("assistant", row["q"]),), (Answer("So."),))
    if kind == "wrong":
        return Record("Why?", ("So.",))
    if kind == "number":
        return 3
    if kind == "exit":
        raise SystemExit(0)
    return row["missing"]
"""


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "made.py").write_text(FUNCTIONS)
    return f"{tmp_path / 'made.py'}:make"


def test_function_gives_records_rows_lists_of_them_or_nothing(functions: str) -> None:
    def made(kind: str) -> list[Record | Dropped]:
        return outcomes({"kind": kind, "q": "Why?"}, function=functions)

    (whole,) = made("record")
    assert whole == asked("Why?", ("So.", 2.0))
    assert isinstance(whole, Record)
    assert whole.fields == {"gold": 1}
    assert made("row") == [asked("Why?", ("So.", None))]
    assert [outcome.origin for outcome in made("two")] == ["x.jsonl:1 (1 of 2)", "x.jsonl:1 (2 of 2)"]
    for kind in ("none", "empty"):
        assert made(kind) == [Dropped("x.jsonl:1", f"left out by {functions}", wanted=True)]


def test_what_a_function_makes_is_checked_and_its_errors_name_its_line(functions: str) -> None:
    def reason(kind: str) -> str:
        return refusal({"kind": kind, "q": "Why?"}, function=functions)

    assert "turn 1 is of role assistant" in reason("half")
    assert "returned a record with parts of the wrong type" in reason("wrong")
    assert "the record is the number 3" in reason("number")
    source = functions.rpartition(":")[0]
    assert reason("other") == f"{functions} raised KeyError: 'missing' ({source}:24)"
    assert reason("exit") == f"{functions} raised SystemExit: 0 ({source}:23)"


def test_row_that_a_function_leaves_out_is_counted_and_no_error(tmp_path: Path, functions: str) -> None:
    rows = [{"kind": kind, "q": "Why?"} for kind in ("row", "none", "two", "other")]
    source = read_mapped(tmp_path, rows, "skip", function=functions)
    assert (len(source.records), len(source.dropped)) == (3, 2)
    assert [dropped.wanted for dropped in source.dropped] == [True, False]
    assert len(read_mapped(tmp_path, rows[:3], "raise", function=functions).records) == 3
    with pytest.raises(DataError, match=r"a\.jsonl:4: .*raised KeyError"):
        read_mapped(tmp_path, rows, "raise", function=functions)


# Sources


def read_mapped(directory: Path, rows: list[Any], on_error: Any, **table: Any) -> Source:
    path = directory / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_source(as_spec(SourceConfig(source=str(path), **table)), on_error=on_error, split_seed=0)


def test_mapped_source_names_file_and_line(tmp_path: Path) -> None:
    rows = [{"Body": "1 + 1", "Answer": 2}, {"Body": None, "Answer": 3}]
    with pytest.raises(DataError, match=r'a\.jsonl:2: "Body" is null\. .*on_error skip'):
        read_mapped(tmp_path, rows, "raise", prompt="{Body}", answer="{Answer}")
    source = read_mapped(tmp_path, rows, "skip", prompt="{Body}", answer="{Answer}")
    assert [r.answers for r in source.records] == [(Answer("2"),)]
    with pytest.raises(DataError, match=r'none of its 2 records.*no column "Bdy"; did you mean "Body"'):
        read_mapped(tmp_path, rows, "skip", prompt="{Bdy}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "b c"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("abc"), v, max_size=3),
    max_leaves=10,
)
TABLES = st.sampled_from(
    [
        {"prompt": "{a}", "answer": "{b} {c}"},
        {"prompt": "{a}", "answers": "{b[].c}", "scores": "{c}"},
        {"messages": "{a}", "role": "b", "content": "c", "roles": {"a": "user"}},
        {"text": {"by": "a", "a": "{b}", "1": "{c.a}"}},
        {"rows": "a[].b[]", "text": "{c}"},
        {"rows": "a.b[]", "system": "{a}"},
    ]
)


@settings(max_examples=300, deadline=None)
@given(JSON, TABLES)
def test_every_row_has_an_outcome(row: Any, table: dict[str, Any]) -> None:
    found = outcomes(row, **table)
    assert found
    assert all(isinstance(outcome, Record) or outcome.reason for outcome in found)
    if "rows" not in table:
        assert len(found) == 1


# Recipes


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ('promt = "{q}"', '[[data.sources]] number 1 ("a.csv"): unknown key "promt"; did you mean "prompt"?'),
        ("zzz = 1", 'unknown key "zzz"; the keys are source, count'),
        ("prompt = 3", '("a.csv"): prompt = 3: neither a text nor a table'),
        ("prompt = { by = 3 }", "prompt = 3"),
        ('roles = { a = "bot" }', "roles = 'bot': Input should be 'system', 'user' or 'assistant'"),
        ('answer = "{a}"', 'the mapping of "a.csv" gives answer, which is no record'),
        ('prompt = "{a}"\nscores = "{b}"', "gives prompt + scores, which is no record"),
        ('text = "{a}"\nfunction = "f.py:g"', "gives text, and function beside it"),
        ('text = "{a}"\nformat = "chat"', "gives text, and format beside it"),
    ],
)
def test_wrong_table_of_a_recipe_is_one_error_that_names_the_source(recipe: str, words: str) -> None:
    table = tomllib.loads(f'[[data.sources]]\nsource = "a.csv"\n{recipe}')
    with pytest.raises(ConfigError) as error:
        resolve([("mine.toml", table)])
    assert str(error.value).startswith("mine.toml: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ('[[data.sources]]\nsorce = "a.csv"', 'number 1: unknown key "sorce"; did you mean "source"?'),
        ('[[data.sources]]\nprompt = "{a}"', 'number 1 has no "source"'),
        ('[data]\nsources = ["a.csv", 3]', "number 2 is 3, neither a text nor a table"),
        ("[data]\nsources = 3", "data.sources = 3: it must be a list"),
    ],
)
def test_wrong_list_of_sources_is_one_error_that_names_the_entry(recipe: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve([("mine.toml", tomllib.loads(recipe))])
    assert words in str(error.value)


# The document


def documented() -> list[SourceConfig]:
    blocks = re.findall(r"^```toml\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return [
        source
        for block in blocks
        for source in resolve([("data.md", tomllib.loads(block))]).data.sources
        if isinstance(source, SourceConfig)
    ]


# an invented row for each mapping of the document that no file beside the repository serves
ROWS: dict[str, tuple[dict[str, Any], Record]] = {
    "sft,rl:problems.csv@0.5": (
        {"Body": "Ann has 2 pears.", "Question": "How many?", "Answer": "2"},
        asked("Ann has 2 pears. How many?", ("2", None)),
    ),
    "reward:preference_train.json": (
        {"prompt": "Why?", "response_0": "So.", "response_1": "No.", "better_response_id": 1, "safer_response_id": 0},
        asked("Why?", ("So.", 1.0), ("No.", 0.0)),
    ),
    "openbmb/UltraFeedback": (
        {"instruction": "Why?", "completions": [{"response": "So.", "overall_score": 1, "fine-grained_score": 4.25}]},
        asked("Why?", ("So.", 4.25)),
    ),
    "reward:rated.csv": (
        {"question": "Why?", "first": "So.", "second": "No.", "first_stars": "5", "second_stars": "1"},
        asked("Why?", ("So.", 5.0), ("No.", 1.0)),
    ),
    "sft:calls.jsonl": (
        {
            "shop": "Ann's",
            "dialogue": [{"speaker": "customer", "words": "Hi"}, {"speaker": "agent", "words": "Hello."}],
        },
        Record((Message("system", "You answer for Ann's."), Message("user", "Hi")), (Answer("Hello."),)),
    ),
    "sft:mkqa": (
        {
            "query": "who?",
            "queries": {"zh_cn": "谁？", "ja": "誰？"},
            "answers": {"zh_cn": [{"type": 1, "text": "安", "aliases": []}], "ja": [{"type": 1, "text": "アン"}]},
        },
        asked("谁？", ("安", None)),
    ),
}


@pytest.mark.parametrize("source", ROWS)
def test_mapping_of_the_document_reads_a_row(source: str) -> None:
    table = next(table for table in documented() if table.source == source)
    row, expected = ROWS[source]
    (outcome,) = reader(table)(Row("x.jsonl:1", row))
    assert isinstance(outcome, Record)
    assert (outcome.prompt, outcome.answers) == (expected.prompt, expected.answers)


def test_the_document_lists_the_keys_of_a_source() -> None:
    section = DOCUMENT.read_text().partition("## Columns of your own")[2].partition("\n- ")[0]
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)))
    assert sorted(listed) == sorted(SourceConfig.model_fields)


# Parts in brackets


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{q}[ Hint: {h}]", {"q": "Why?", "h": "So."}, "Why? Hint: So."),
        ("{q}[ Hint: {h}]", {"q": "Why?", "h": ""}, "Why?"),
        ("{q}[ Hint: {h}]", {"q": "Why?", "h": " \n"}, "Why?"),
        ("{q}[ Hint: {h}]", {"q": "Why?", "h": None}, "Why?"),
        ("{q}[ Hint: {h}]", {"q": "Why?"}, "Why?"),
        ("{q}[ Hint: {h}]", {"q": "Why?", "h": 0}, "Why? Hint: 0"),
        ("{q}[ {a} or {b}]", {"q": "Why?", "a": "x", "b": ""}, "Why?"),
        ("{q}[ {a[0].text}]", {"q": "Why?", "a": [{"text": "x"}]}, "Why? x"),
        ("{q}[ {a.b}]", {"q": "Why?", "a": None}, "Why?"),
        ("{q} [[{h}]]", {"q": "Why?", "h": "So."}, "Why? [So.]"),
        ("[INST] {q} [/INST]", {"q": "Why?"}, "[INST] Why? [/INST]"),
        ("{q} [1] [[x]] []", {"q": "Why?"}, "Why? [1] [[x]] []"),
        ("{q}[ {{{h}}}]", {"q": "Why?", "h": "So."}, "Why? {So.}"),
        ("[{q}]", {"q": "Why?"}, "Why?"),
    ],
)
def test_a_part_in_brackets_is_left_out_where_its_column_is_empty(
    template: str, row: dict[str, Any], expected: str
) -> None:
    assert record(row, prompt=template) == asked(expected)


def test_a_misspelt_column_in_brackets_is_an_error() -> None:
    assert 'no column "contxt"; did you mean "context"' in refusal(
        {"q": "Why?", "context": "x"}, prompt="{q}[ {contxt}]"
    )
    with pytest.raises(ConfigError, match="is no path"):
        reader(SourceConfig(source="x.jsonl", prompt="{q}[ {a..b}]"))


def test_what_a_mapping_does_not_name_is_named() -> None:
    row = {"q": "Why?", "a": "So.", "context": "It is dusk.", "id": 3}
    assert record(row, prompt="{q}", answer="{a}").unused == ("context", "id")
    assert record(row, prompt="{q}", answer="{a}", system="{context}").unused == ("id",)
    talk = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "tools": "f(x)"}
    assert record(talk, system="Tools: {tools}").unused == ()
    assert '"tools" seems to hold' in refusal(talk, roles={"a": "user"})


@pytest.mark.parametrize("name", ["response_1", "selected", "answer_b"])
def test_no_hint_names_another_column(name: str) -> None:
    row = {"q": "Why?", "response_2": "x", "rejected": "y", "answer_a": "z"}
    assert "did you mean" not in refusal(row, prompt="{q}", answer=f"{{{name}}}")
