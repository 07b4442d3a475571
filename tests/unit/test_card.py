"""What a saved model's README.md says: what is known, and that the rest is not."""

import yaml
from tiny import byte_tokenizer, tiny_model

from chatsmith.assistant import Assistant, load
from chatsmith.card import card, stated_licence


def written(**options):
    given = {"tags": ["sft"], "made": "Made.", "base": "me/model", "licences": [("base", "mit"), ("data", "mit")]}
    text = card("A title", **(given | options))
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_is_yaml_with_what_is_known():
    head, body = written()
    assert head == {
        "license": "mit",
        "library_name": "transformers",
        "base_model": "me/model",
        "tags": ["chatsmith", "sft"],
    }
    assert "# A title" in body and "- data: mit" in body


def test_no_licence_is_claimed_that_not_all_state():
    for licences in ([("base", "mit"), ("data", None)], [("base", "mit"), ("data", "cc-by-4.0")], []):
        head, _ = written(licences=licences)
        assert "license" not in head
    head, body = written(licences=[("base", "MIT License\n---\nevil: 1"), ("data", "MIT License\n---\nevil: 1")])
    assert "license" not in head and "\n---" not in body
    assert "- base: MIT License --- evil: 1" in body


def test_a_directory_is_no_base_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    for base in ("me", "/absent/model", "runs/a/sft/model", 'x"\ny', ""):
        assert "base_model" not in written(base=base)[0]
    assert "Base: not recorded" in written(base="")[1]


def test_the_licence_of_a_model_is_read_from_its_head(tmp_path):
    readme = tmp_path / "README.md"
    assert stated_licence(str(tmp_path)) is None
    for text, licence in (
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("license: mit\n", None),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("---\nlicense: see LICENSE for secrets\n---\n", None),
        ("", None),
    ):
        readme.write_text(text)
        assert stated_licence(str(tmp_path)) == licence, text
    assert stated_licence("facebook/opt-125m") is None


def test_save_says_what_is_known(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    load(tmp_path / "base").save(tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert f"- base {tmp_path / 'base'}: apache-2.0\n- data since then: no licence is stated\n" in text
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    Assistant(tiny_model("llama"), byte_tokenizer(), (), 64).save(tmp_path / "new")
    assert "Base: not recorded" in (tmp_path / "new" / "README.md").read_text()
