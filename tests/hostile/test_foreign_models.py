"""Models from strangers: what lies outside is never opened, and whatever is in them is used or refused, in words."""

import contextlib
import ctypes
import json
import os
import shutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tiny import byte_tokenizer, tiny_model, tiny_reward_model

from chatsmith import bounds
from chatsmith.card import stated_licence
from chatsmith.data.chat import encode
from chatsmith.errors import ConversationError, ModelError
from chatsmith.models.load import (
    check_reward_base,
    declared_context,
    load_actor,
    load_reward_model,
    load_stop_ids,
    load_tokenizer,
    tokenizer_oddities,
)
from chatsmith.models.location import check_location
from chatsmith.types import Message

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}
TALK = [Message("user", "How many?"), Message("assistant", "Seven, 七.")]
IN_OPEN = 0x20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    tiny_model("llama").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def model(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def secret(tmp_path):
    """A file that a model's directory has no business with."""
    path = tmp_path / "elsewhere" / "tokenizer.4.0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"license": "SECRET", "SECRET": 1}))
    return path


@contextlib.contextmanager
def opened(directory):
    """The names in it that anybody opens meanwhile, libraries that are not in Python too."""
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(watch, os.fsencode(directory), IN_OPEN)
    names = []
    try:
        yield names
        with contextlib.suppress(BlockingIOError):
            names.append(os.read(watch, 1 << 16))
    finally:
        os.close(watch)


def load(directory):
    """All that a run does with a model before it trains."""
    location = str(directory)
    tokenizer = load_tokenizer(location)
    stops = load_stop_ids(location, tokenizer)
    tokenizer_oddities(location)
    declared_context(location)
    encode(tokenizer, [TALK], stops=stops)
    load_actor(location, tokenizer, **CPU)


def change(file, **values):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


NAMES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "model.safetensors", "model.safetensors.index.json", "README.md"),
    *("additional_chat_templates/x.jinja", "vocab.json", "merges.txt", "adapter_config.json", "anything"),
)


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_model_leads_out_of_it(model, secret, name, kind):
    place = model / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    with opened(secret.parent) as names:
        for use in (check_location, load_tokenizer, lambda path: load_actor(path, byte_tokenizer(), **CPU)):
            with pytest.raises(ModelError, match=place.name):
                use(str(model))
        assert stated_licence(str(model)) is None
    assert names == []


@pytest.mark.parametrize("name", ["{secret}", "../elsewhere/tokenizer.4.0.json"])
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("tokenizer_config.json", ["vocab_file", "gguf_file", "vocab", "merges", "spm_file", "init_inputs"]),
        ("tokenizer_config.json", ["fast_tokenizer_files", "tokenizer_file", "merges_file", "source_spm"]),
        ("special_tokens_map.json", ["vocab", "vocab_file"]),
        ("config.json", ["configuration_files", "transformers_weights"]),
        ("model.safetensors.index.json", ["weight_map"]),
    ],
)
def test_names_that_lead_out_are_refused_before_they_are_opened(model, secret, file, keys, name):
    name = name.format(secret=secret)
    for key in keys:
        for tokenizer_too in (True, False):
            shutil.copytree(model, copy := model.parent / f"{key}{tokenizer_too}")
            if not tokenizer_too:  # then others are looked for
                (copy / "tokenizer.json").unlink()
            value = {"weight_map": {"x": name}, "fast_tokenizer_files": [name], "init_inputs": [name]}.get(key, name)
            change(copy / file, **{key: value} | ({"metadata": {}} if key == "weight_map" else {}))
            if key == "weight_map":
                (copy / "model.safetensors").unlink()
            with opened(secret.parent) as names, pytest.raises(ModelError, match=key):
                load(copy)
            assert names == []


def test_a_name_of_where_it_came_from_is_no_matter(model, secret):
    change(model / "tokenizer_config.json", name_or_path=str(secret), special_tokens_map_file=str(secret))
    change(model / "config.json", _name_or_path=str(secret))
    with opened(secret.parent) as names:
        load(model)
    assert names == []


def test_a_snapshot_of_the_hub_and_links_inside_are_read(model, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b/blobs").mkdir()
    for number, file in enumerate(model.iterdir()):
        shutil.copy(file, tmp_path / f"models--a--b/blobs/{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    load(snapshot)
    (model / "config.json").rename(model / "c")
    (model / "config.json").symlink_to("c")
    (tmp_path / "link").symlink_to(model)
    load(tmp_path / "link")


def test_a_file_that_is_read_whole_has_a_bound(model):
    for name in ("tokenizer.json", "chat_template.jinja", "x.md"):
        before = (model / name).read_bytes() if (model / name).exists() else b""
        with open(model / name, "ab") as file:
            file.truncate(1 << 40)
        with pytest.raises(ModelError, match=f"{name}: longer"):
            check_location(str(model))
        (model / name).write_bytes(before)
    load(model)


TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "", "a" * 300, "a\nb", "\0", "..", 3])
def test_a_tokenizer_that_could_not_be_saved_is_refused_before_a_stage_trains(model, name):
    templates = [{"name": "default", "template": TEMPLATE}, {"name": name, "template": TEMPLATE}]
    change(model / "tokenizer_config.json", chat_template=templates)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    before = sorted(model.parent.rglob("*"))
    with contextlib.suppress(ModelError):  # ".." is a name like others, with .jinja behind it
        tokenizer = load_tokenizer(str(model))
        assert name == ".."
        tokenizer.save_pretrained(model.parent / "saved/deep")
        shutil.rmtree(model.parent / "saved")
    assert sorted(model.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "body",
    [
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 'x' * 10 ** 8 }}",
        "{{ '%1000000000d' % 1 }}",
        "{% set n = namespace(x='xx') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ messages | map('join', messages) | list }}{{ messages[10**30] }}",
        "{{ none.x.y }}",
        "{% if %}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_template_ends_and_its_errors_have_words(model, monkeypatch, body):
    monkeypatch.setattr(bounds, "SECONDS", 0.3)
    monkeypatch.setattr(bounds, "MEMORY", 1 << 29)
    (model / "chat_template.jinja").write_text(body + TEMPLATE)
    with pytest.raises(ModelError) as error:
        load(model)
    assert "\n" not in str(error.value)


def test_a_template_that_turns_bad_later_ends_too(model, monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.3)
    body = (
        "{% if messages | length > 2 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    (model / "chat_template.jinja").write_text(f"{body}{{% endif %}}{TEMPLATE}")
    load(model)
    tokenizer = load_tokenizer(str(model))
    with pytest.raises(ModelError, match=r"does not come to an end: it takes more than 0\.3 seconds"):
        encode(tokenizer, [TALK, TALK + TALK], stops=[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**9},
        {"hidden_size": 2**70},
        {"vocab_size": 10**12},
        {"intermediate_size": 10**10},
        {"num_attention_heads": 10**30},
        {"max_position_embeddings": [1]},
        {"max_position_embeddings": 10**400},
        {"attn_implementation": "somebody/kernels"},
        {"architectures": 3},
        {"architectures": {}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_configuration_that_asks_for_too_much_is_refused_before_it_gets_it(model, monkeypatch, changes):
    monkeypatch.setattr(bounds, "SECONDS", 0.4)
    change(model / "config.json", **changes)
    for use in (lambda: load_actor(str(model), byte_tokenizer(), **CPU), lambda: check_reward_base(str(model))):
        try:
            with bounds.bounded():
                use()
        except ModelError as error:
            assert "\n" not in str(error)
        else:  # nothing is made as large as that
            small = {"architectures", "max_position_embeddings"}
            assert "load_actor" not in use.__code__.co_names or set(changes) <= small


@pytest.mark.parametrize("eos", ["abc", -1, 2**40, 1.5, [2, None], [[2]], {"a": 1}, True])
def test_a_token_that_ends_answers_is_a_tokens_number(model, eos):
    change(model / "generation_config.json", eos_token_id=eos)
    with pytest.raises(ModelError):
        load_stop_ids(str(model), load_tokenizer(str(model)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, -1, 1, 2**31, 2**63, 10**30, 0.5, float("inf"), float("nan"), "", "a", "<s>", "\ud800", "../x"]
    )
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "special_tokens_map.json")


def places(value, path=()):
    """The paths of all values, but of a vocabulary only some."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, inner) in enumerate(items):
        if number < 40:
            yield from places(inner, (*path, key))


def put(value, path, new):
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_any_place_is_used_or_refused(whole, tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("changed") / "m"
    shutil.copytree(whole, directory)
    try:
        for _ in range(data.draw(st.integers(1, 2))):
            file = directory / data.draw(st.sampled_from(FILES))
            held = json.loads(file.read_text()) if file.exists() else {"bos_token": "<s>"}
            place = data.draw(st.sampled_from(list(places(held))))
            file.write_text(json.dumps(put(held, place, data.draw(JSON))))
        try:
            load(directory)
        except ModelError as error:
            assert not isinstance(error, ConversationError) or str(error)
    finally:
        shutil.rmtree(directory)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(begin=st.integers(0, 400), new=st.binary(max_size=12), keep=st.booleans())
def test_a_checkpoint_of_any_bytes_is_used_or_refused(whole, tmp_path_factory, begin, new, keep):
    directory = tmp_path_factory.mktemp("changed") / "m"
    shutil.copytree(whole, directory)
    file = directory / "model.safetensors"
    held = file.read_bytes()
    file.write_bytes(held[:begin] + new + (held[begin + len(new) :] if keep else b""))
    with contextlib.suppress(ModelError):
        load_actor(str(directory), byte_tokenizer(), **CPU)
    shutil.rmtree(directory)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    from chatsmith.models.reward import load_ready_reward

    reward = tiny_reward_model()
    reward.config.architectures = ["LlamaForSequenceClassification"]
    reward.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for mean, std in (("0", 1), (0, "1"), ([], 1), (0, float("nan"))):
        change(tmp_path / "config.json", score_mean=mean, score_std=std)
        with pytest.raises(ModelError):
            load_ready_reward(str(tmp_path), 1.0, name=None, **CPU, max_tokens_per_pass=100)
    load_reward_model(str(tmp_path), byte_tokenizer(), **CPU)


def test_a_licence_is_looked_for_in_a_bounded_time(tmp_path):
    (tmp_path / "README.md").write_text("---" + "\n" * 60_000)
    assert stated_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert stated_licence(str(tmp_path)) == "mit"
