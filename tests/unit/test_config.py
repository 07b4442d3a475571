"""Configuration: layers, overrides, and errors that name key, value, place and remedy."""

import pytest

from chatsmith.cli import split_arguments
from chatsmith.config import Config
from chatsmith.errors import ConfigError
from chatsmith.resolve import builtin_recipes, known_keys, nested, parse_overrides, read_recipe, resolve


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
