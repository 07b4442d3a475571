"""`chatsmith bench` as a user types it."""

import json

SMALL = ("--batch", "4", "--prompt-tokens", "8", "--answer-tokens", "6")


def shares(value, name=""):
    for key, part in value.items() if isinstance(value, dict) else ():
        yield from shares(part, key)
    if name.endswith("share"):
        yield name, value


def test_it_measures_a_model_and_says_what_to_type_next(chatsmith, model_directory):
    directory = model_directory("llama")
    result = chatsmith("bench", directory, *SMALL, small=False, NO_COLOR="1")
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "4 answers of 6 tokens to prompts of 8" in result.stdout
    assert f"chatsmith train --actor-model {directory} " in result.stdout
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["model"] == str(directory)
    assert figures["decode"]["bytes_per_step"] == 123520 + 4 * (9 + 13) / 2 * 256  # weights, keys and values
    found = dict(shares(figures))
    assert len(found) == 6
    assert all(0 < share <= 1.5 for share in found.values()), found
    parts = [value for name, value in figures["step"].items() if name.endswith("_share") and name != "flops_share"]
    assert abs(sum(parts) - 1) < 1e-6


def test_what_cannot_be_measured_is_refused_in_one_line(chatsmith, model_directory):
    for options, message in (
        (("absent/model",), "absent/model"),
        ((model_directory("llama"), "--prompt-tokens", "250"), "this model takes 256"),
        (("--answer-tokens", "1"), "--answer-tokens 1: it is 2 or more."),
        (("--rl.lr", "1"), "takes no configuration"),
    ):
        result = chatsmith("bench", *options, small=False)
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
