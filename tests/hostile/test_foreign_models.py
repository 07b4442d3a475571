"""Models from strangers: what lies outside is never opened, and whatever is in them is used or refused, in words."""

import contextlib
import ctypes
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import decoders
import hypothesis.strategies as st
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from tiny import byte_tokenizer, tiny_model, tiny_reward_model
from transformers import GenerationConfig

from chatsmith.card import stated_licence
from chatsmith.data.chat import encode
from chatsmith.errors import ConversationError, ModelError
from chatsmith.files import bounds
from chatsmith.files.writing import replace_directory
from chatsmith.models.load import (
    _bytes_in,
    check_reward_base,
    declared_context,
    load_actor,
    load_reward_model,
    load_stop_ids,
    load_tokenizer,
    new_reward_model,
    save_model,
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
    for name in ("trainer_log.txt", "trainer_state.json", "x.md"):  # nobody opens these
        with open(model / name, "wb") as file:
            file.truncate(1 << 40)
    for name in ("tokenizer.json", "chat_template.jinja", "vocab.json", "merges.txt"):
        before = (model / name).read_bytes() if (model / name).exists() else b""
        with open(model / name, "ab") as file:
            file.truncate(1 << 40)
        with pytest.raises(ModelError, match=f"{name}: longer"):
            check_location(str(model))
        (model / name).write_bytes(before)
        if not before:
            (model / name).unlink()
    load(model)
    change(model / "tokenizer_config.json", vocab_file="x.md")
    with pytest.raises(ModelError, match=r"x\.md: longer"):
        check_location(str(model))


def test_what_is_hidden_beside_a_model_is_no_matter(model):
    (model / ".git").mkdir()
    os.mkfifo(model / ".git/fsmonitor--daemon.ipc")
    (model / ".venv/bin").mkdir(parents=True)
    (model / ".venv/bin/python").symlink_to("/usr/bin/python3")
    (model / ".x.json").symlink_to("/dev/zero")
    load(model)
    (model / "config.json").rename(model / "c")
    with pytest.raises(ModelError, match="no model here"):
        load(model)


def test_what_is_hidden_is_looked_at_where_it_is_named_or_listed(model, secret):
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/.x.jinja").symlink_to(secret)
    with opened(secret.parent) as names, pytest.raises(ModelError, match=r"\.x\.jinja: a link"):
        load(model)
    shutil.rmtree(model / "additional_chat_templates")
    (model / ".x").symlink_to(secret)
    os.mkfifo(model / ".y")
    for name in (".x", ".y"):
        change(model / "tokenizer_config.json", vocab_file=name)
        with pytest.raises(ModelError, match="vocab_file"):
            load(model)
    assert names == []


def test_blobs_on_another_disk_are_refused_with_the_way_to_have_them_there(model, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    model.rename(tmp_path / "disk")
    (tmp_path / "models--a--b/blobs").symlink_to(tmp_path / "disk")
    for file in (tmp_path / "disk").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    with pytest.raises(ModelError, match="HF_HOME"):
        load(snapshot)


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


@pytest.mark.parametrize("beside", ["notes.dat", "pytorch_model.bin", "other.safetensors", "model.safetensors"])
def test_only_what_weights_really_hold_counts(model, beside):
    """Files of holes have any length."""
    change(model / "config.json", intermediate_size=10**7)
    with open(model / beside, "ab") as file:
        file.truncate(100 << 30)
    with bounds.bounded(), pytest.raises(ModelError, match=r"1,920,0.* weights, and its files hold|cut off or damaged"):
        load_actor(str(model), byte_tokenizer(), **CPU)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("GPTJConfig", {"n_positions": 3 * 10**8}),
        ("CodeGenConfig", {"n_positions": 3 * 10**8}),
        ("GPTNeoConfig", {"max_position_embeddings": 60_000}),
    ],
)
def test_tables_that_are_computed_count_too(tmp_path, family, changes):
    shape = next(shape for kind, shape in decoders.FAMILIES.values() if kind == family)
    config = getattr(transformers, family)(**shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    change(tmp_path / "config.json", **changes)
    with (
        bounds.bounded(),
        pytest.raises(ModelError, match=r"tables of positions and masks|weights, and its files hold"),
    ):
        load_actor(str(tmp_path), byte_tokenizer(), **CPU)


def test_holes_do_not_count_as_bytes(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"x" * 100_000)
    assert _bytes_in(file) == 100_000
    with file.open("ab") as opened:
        opened.truncate(1 << 40)
        opened.seek(1 << 39)
        opened.write(b"x" * 100_000)
    assert _bytes_in(file) < 1_000_000


def test_packed_weights_are_not_unpacked(model):
    held = io.BytesIO()
    torch.save(tiny_model("llama").state_dict(), held)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(held.getvalue())
    load_actor(str(model), byte_tokenizer(), **CPU)
    with zipfile.ZipFile(held) as plain, zipfile.ZipFile(model / "pytorch_model.bin", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ModelError, match="packed otherwise"):
        load_actor(str(model), byte_tokenizer(), **CPU)


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


TOKENIZER = byte_tokenizer()
ADDED = {
    "config.json": sorted({*dir(transformers.LlamaConfig), *vars(transformers.LlamaConfig()), "rope_parameters"}),
    "generation_config.json": sorted({*dir(GenerationConfig), *vars(GenerationConfig())}),
    "tokenizer_config.json": sorted({*dir(TOKENIZER), *vars(TOKENIZER)}),
}
NONSENSE = st.sampled_from([5, "AutoConfig", "", True, [], {}, {"a": 1}, 0.5, None, ["x"], "../x"])


def used_or_refused(directory):
    """What loads can be saved: nobody is told so after hours of training."""
    location = str(directory)
    try:
        tokenizer = load_tokenizer(location)
        stops = load_stop_ids(location, tokenizer)
        check_reward_base(location)
        actor = load_actor(location, tokenizer, **CPU)
        reward = new_reward_model(location, tokenizer, seed=0, **CPU)
    except ModelError:
        return
    for model in (actor, reward):
        replace_directory(
            directory / "saved", lambda path, model=model: save_model(model, tokenizer, path, stops=stops, card="")
        )
        assert not any(file.suffix == ".py" for file in (directory / "saved").iterdir())
        shutil.rmtree(directory / "saved")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_added_under_a_name_of_the_library_is_used_or_refused(whole, tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("changed") / "m"
    shutil.copytree(whole, directory)
    file = data.draw(st.sampled_from(sorted(ADDED)))
    change(directory / file, **{data.draw(st.sampled_from(ADDED[file])): data.draw(NONSENSE)})
    try:
        used_or_refused(directory)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        *(("config.json", key) for key in ("save_pretrained", "_auto_class", "to_dict", "to_json_string", "__class__")),
        *(("config.json", key) for key in ("get_text_config", "__deepcopy__", "validate")),
        *(("tokenizer_config.json", key) for key in ("save_pretrained", "_auto_class")),
    ],
)
def test_a_value_in_place_of_a_function_is_refused_by_its_name(model, file, key):
    change(model / file, **{key: "AutoConfig"})
    with pytest.raises(ModelError, match=key):
        load(model)


def test_what_still_cannot_be_saved_is_no_fault_of_the_disk(tmp_path):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    model.config.__dict__["to_json_file"] = 5
    with pytest.raises(ModelError, match="the model cannot be saved: TypeError"):
        replace_directory(tmp_path / "saved", lambda path: save_model(model, tokenizer, path, stops=[2], card=""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key", ["save_pretrained", "validate", "update", "to_diff_dict", "_auto_class", "__deepcopy__"]
)
def test_a_function_of_a_generation_config_stays_one(model, key):
    change(model / "generation_config.json", **{key: "AutoConfig"})
    used_or_refused(model)


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
            load_ready_reward(str(tmp_path), 1.0, name=None, **CPU, max_tokens_per_pass=100, max_new_tokens=8)
    load_reward_model(str(tmp_path), byte_tokenizer(), **CPU)


def test_a_licence_is_looked_for_in_a_bounded_time(tmp_path):
    (tmp_path / "README.md").write_text("---" + "\n" * 60_000)
    assert stated_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert stated_licence(str(tmp_path)) == "mit"
