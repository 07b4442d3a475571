"""Configuration: layers, overrides, and errors that name key, value, place and remedy."""

import pytest

from chatsmith.cli import split_arguments
from chatsmith.config import PRESETS, Config, RlConfig
from chatsmith.errors import ConfigError
from chatsmith.report.settings import repeated
from chatsmith.resolve import (
    COMMAND_LINE,
    builtin_recipes,
    known_keys,
    nested,
    parse_overrides,
    read_recipe,
    resolve,
)


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_built_in_recipe_is_a_valid_configuration(name):
    config = resolve([(name, read_recipe(name))])
    assert config != Config()
    assert builtin_recipes()[name].startswith("# ")


def test_later_layers_win_key_by_key():
    config = resolve([("a", {"rl": {"kl_coef": 0.1, "lam": 0.5}}), ("b", {"rl": {"kl_coef": 0.2}})])
    assert (config.rl.kl_coef, config.rl.lam) == (0.2, 0.5)


def test_overrides_are_toml_values_or_strings():
    given = parse_overrides(["--rl.kl_coef", "0.02", "--sft.betas=[0.9, 0.98]", "--data.on_error", "skip"])
    assert given == {"rl": {"kl_coef": 0.02}, "sft": {"betas": [0.9, 0.98]}, "data": {"on_error": "skip"}}
    assert parse_overrides(["--rl.truncated_score", "-0.5"]) == {"rl": {"truncated_score": -0.5}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rl.kl_coeff": 0.1}, 'unknown key "rl.kl_coeff"; did you mean "rl.kl_coef"?'),
        ({"kl_coef": 0.1}, 'unknown key "kl_coef"; did you mean "rl.kl_coef"?'),
        ({"sft.lr": "fast"}, "sft.lr = 'fast'"),
        ({"sft.lr": -1.0}, "sft.lr = -1.0: Input should be greater than 0"),
        ({"rl.minibatches": 3, "rl.rollouts": 256}, "rl.minibatches = 3 does not divide rl.rollouts = 256"),
        ({"rl.kl_estimator": "k3"}, "in the reward trains the wrong way"),
        ({"rl.kl_in": "loss", "rl.kl_estimator": "k1"}, "gradient of zero"),
        ({"rl.algorithm": "a2c"}, "rl.algorithm = 'a2c'"),
        ({"rl.baseline": "others"}, "rl.samples_per_prompt = 1: rl.baseline = 'others' compares the answers"),
        ({"rl.algorithm": "grpo", "rl.samples_per_prompt": 1}, "rl.baseline = 'group' compares the answers"),
        ({"rl.scale": "group"}, 'rl.scale = "group" compares the answers'),
        ({"rl.skip_equal_groups": True}, "rl.skip_equal_groups compares the answers"),
        ({"rl.algorithm": "grpo", "rl.kl_in": "reward", "rl.kl_estimator": "k1"}, "divides the rewards of each prompt"),
        ({"rl.max_refills": 1}, "Set rl.skip_equal_groups = true"),
        ({"rl.cap": 5.0}, 'rl.cap = 5.0 does nothing with rl.surrogate = "clip"'),
        ({"rl.surrogate": "cispo"}, 'rl.surrogate = "cispo" needs rl.cap'),
        ({"rl.algorithm": "cispo", "rl.clip_high": 0.2}, "rl.clip_high = 0.2 does nothing"),
        ({"rl.algorithm": "cispo", "rl.dual_clip": 3.0}, "rl.dual_clip = 3.0 does nothing"),
        ({"rl.algorithm": "gspo", "rl.clip_low": 0.2}, "rl.clip_low = 0.2 is the size of a token's ratio"),
        ({"rl.ratio": "answer"}, "rl.clip_low = 0.2 is the size of a token's ratio"),
        ({"rl.clip_low": "none"}, 'rl.clip_low = "none" goes with rl.ratio = "answer" alone'),
        ({"data.on_error": "ignore"}, "data.on_error = 'ignore'"),
        ({"rl.truncated_score": "drop"}, "rl.truncated_score"),
    ],
)
def test_a_wrong_setting_is_one_error_that_names_file_and_key(keys, message):
    with pytest.raises(ConfigError) as error:
        resolve([("mine.toml", nested(keys))])
    assert message in str(error.value)
    assert str(error.value).startswith("mine.toml: ")


def test_good_kl_combinations_are_accepted():
    for kl_in, estimator in [("reward", "k1"), ("reward", None), ("loss", "k2"), ("loss", "k3"), ("loss", None)]:
        config = resolve([("x", {"rl": {"kl_in": kl_in} | ({"kl_estimator": estimator} if estimator else {})})])
        assert (config.rl.kl_in, config.rl.kl_estimator) == (kl_in, estimator)


def test_a_missing_recipe_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match='did you mean "tiny-cpu"'):
        read_recipe("tiny-cup")
    broken = tmp_path / "broken.toml"
    broken.write_text("[rl\nlr = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML.*line 1"):
        read_recipe(str(broken))


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--rl\.lr has no value"):
        parse_overrides(["--rl.lr"])


def test_arguments_are_told_apart():
    overrides, rest = split_arguments(
        [
            "tiny-cpu",
            "--data",
            "a.jsonl",
            "b.jsonl@2",
            "--rl.kl_coef",
            "0.1",
            "--run-dir",
            "x",
            "--sft.lr=1e-3",
            "--force",
        ]
    )
    assert overrides == ["--rl.kl_coef", "0.1", "--sft.lr=1e-3"]
    assert rest == ["tiny-cpu", "--data", "a.jsonl", "--data", "b.jsonl@2", "--run-dir", "x", "--force"]


def test_the_stages_default_surface_stays_small():
    stage_keys = [key for key in known_keys() if key.split(".")[0] in ("sft", "reward", "rl")]
    unique = {key.split(".")[1] for key in stage_keys}
    assert len(unique) <= 60


def test_none_turns_an_optional_key_off():
    assert resolve([("x", {"rl": {"value_clip": "none"}})]).rl.value_clip is None
    assert resolve([("x", {"rl": {"truncated_score": "none"}})]).rl.truncated_score == "none"
    with pytest.raises(ConfigError, match=r"sft\.lr"):
        resolve([("x", {"sft": {"lr": "none"}})])


def test_a_preset_is_what_the_algorithm_sets_and_ppo_is_the_default():
    assert RlConfig(algorithm="ppo") == RlConfig()
    for name, keys in PRESETS.items():
        settings = RlConfig(algorithm=name)
        assert {key: getattr(settings, key) for key in keys} == dict(keys)
        saved = Config(rl=settings).model_dump(mode="json")
        assert Config(**saved).rl == settings  # the manifest holds every key


def resolved(*layers):
    return resolve([(origin, nested(keys)) for origin, keys in layers]).rl


def test_an_explicit_key_beats_a_preset_and_a_preset_beats_what_came_before():
    recipe = {"rl.algorithm": "rloo", "rl.kl_coef": 0.15, "rl.samples_per_prompt": 2, "rl.lr": 1e-3}
    here = resolved(("a.toml", recipe))
    assert (here.baseline, here.kl_coef, here.samples_per_prompt) == ("others", 0.15, 2)
    other = resolved(("a.toml", recipe), (COMMAND_LINE, {"rl.algorithm": "grpo"}))
    assert (other.baseline, other.kl_coef, other.samples_per_prompt, other.lr) == ("group", 0.04, 8, 1e-3)
    both = resolved(("a.toml", recipe), (COMMAND_LINE, {"rl.algorithm": "grpo", "rl.kl_coef": 0.5}))
    assert (both.aggregate, both.kl_coef) == ("answer", 0.5)
    key_alone = resolved(("a.toml", recipe), (COMMAND_LINE, {"rl.aggregate": "answer"}))
    assert (key_alone.baseline, key_alone.aggregate, key_alone.kl_coef) == ("others", "answer", 0.15)


def test_naming_the_algorithm_that_is_in_force_changes_nothing():
    recipe = {"rl.algorithm": "rloo", "rl.kl_coef": 0.15}
    assert resolved(("a.toml", recipe)) == resolved(("a.toml", recipe), (COMMAND_LINE, {"rl.algorithm": "rloo"}))
    plain = read_recipe("tiny-cpu")
    assert resolve([("tiny-cpu", plain)]) == resolve(
        [("tiny-cpu", plain), (COMMAND_LINE, {"rl": {"algorithm": "ppo"}})]
    )


def test_the_word_none_is_a_value_where_a_key_has_it():
    settings = resolved(("x", {"rl.baseline": "none", "rl.scale": "none", "rl.truncated_score": "none"}))
    assert (settings.baseline, settings.scale, settings.truncated_score) == ("none", "none", "none")
    assert resolved(("x", {"rl.value_clip": "none"})).value_clip is None


def test_keys_of_a_critic_that_is_not_there_are_noted_or_refused():
    recipe = {"rl.critic_lr": 7.5e-4, "rl.lam": 0.9, "rl.lr": 1e-3}
    layers = [("a.toml", nested(recipe)), (COMMAND_LINE, {"rl": {"algorithm": "rloo"}})]
    said = []
    assert resolve(layers, note=said.append).rl == RlConfig(algorithm="rloo", lr=1e-3)
    assert len(said) == 1
    assert said[0].startswith("a.toml: not used are rl.critic_lr, rl.lam: ")
    for key in ("critic_lr", "critic_warmup", "value_clip", "lam", "returns_lam", "gamma"):
        typed = {"rl": {"algorithm": "grpo", key: 1}}
        with pytest.raises(ConfigError, match=rf"^command line: rl\.{key}: .* there is no critic"):
            resolve([(COMMAND_LINE, typed)], note=said.append)
    assert resolve([layers[0]], note=said.append).rl.critic_lr == 7.5e-4
    assert len(said) == 1


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("changes", [{}, {"kl_coef": 0.15}, {"samples_per_prompt": 2}, {"value_clip": None}])
def test_the_command_that_repeats_a_run_gives_its_configuration_again(name, changes):
    if "value_clip" in changes and name != "ppo":
        changes = {"ratio": "answer", "surrogate": "clip", "cap": None, "clip_low": None, "clip_high": None}
    typed = [("tiny-cpu", read_recipe("tiny-cpu")), (COMMAND_LINE, {"rl": {"algorithm": name} | changes})]
    config = Config(**resolve(typed).model_dump(mode="json"))
    words = repeated(config.model_dump(mode="json"), "tiny-cpu")
    assert words[:2] == ["train", "tiny-cpu"]
    again = resolve([("tiny-cpu", read_recipe("tiny-cpu")), (COMMAND_LINE, parse_overrides(words[2:]))])
    assert again == config
    assert ("--rl.algorithm" in words) == (name != "ppo")
