"""A model gets its cache under the name that it knows, whichever version of transformers is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from decoders import SIZE, answers, build, generated, spelled_out
from tiny import byte_tokenizer

from chatsmith.engine.engine import Engine
from chatsmith.errors import ModelError
from chatsmith.models.arguments import CACHE_NAMES, cache_argument
from chatsmith.models.counts import count
from chatsmith.models.load import load_actor
from chatsmith.models.way import Way, note, way_of

TESTS = Path(__file__).resolve().parents[1]


class Of524:
    def forward(self, input_ids, cache=None, **others):
        """The name since transformers 5.24."""


class Before:
    def forward(self, input_ids, past_key_values=None, **others):
        """The name before."""


class StateSpaceBefore:
    def forward(self, input_ids, cache_params=None, **others):
        """The name before, of Mamba and its kin."""


class Neither:
    def forward(self, input_ids, mems=None, **others):
        """It would swallow either name."""


def test_the_name_is_that_of_the_signature_and_a_model_that_knows_none_is_refused():
    assert cache_argument(Of524()) == "cache"
    assert cache_argument(Before()) == "past_key_values"
    assert cache_argument(StateSpaceBefore()) == "cache_params"
    with pytest.raises(ModelError, match="Neither takes no cache of keys and values"):
        cache_argument(Neither())


def test_real_models_know_one_name_and_without_it_their_tokens_are_others():
    model = build("llama")
    name = cache_argument(model)
    right = generated(model)
    assert [answer.tokens for answer in answers(model, 0.0)] == right
    forward = model.forward

    def swallow(*args, cache=None, past_key_values=None, **kwargs):
        return forward(*args, **kwargs)

    model.forward = swallow  # as a model whose argument has another name by now
    assert cache_argument(model) == "cache" and name in CACHE_NAMES
    assert [answer.tokens for answer in answers(model, 0.0, together=False)] != right


def test_a_state_space_model_gets_its_state():
    torch.manual_seed(0)
    config = transformers.MambaConfig(**SIZE, hidden_size=64, num_hidden_layers=2, state_size=8)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert [answer.tokens for answer in answers(model, 0.0)] == generated(model)


def test_a_model_without_a_cache_of_ours_computes_its_rows_anew_and_nothing_else_is_tried_with_it(tmp_path):
    config = transformers.RwkvConfig(**SIZE, hidden_size=64, num_hidden_layers=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    model = load_actor(str(tmp_path), byte_tokenizer(), dtype=torch.float32, device=torch.device("cpu"))
    assert way_of(model).sampling == "anew"
    assert [answer.tokens for answer in answers(model, 0.0)] == spelled_out(model)
    note(model, Way("padded", sampling="alone"))
    with pytest.raises(ModelError, match="RwkvForCausalLM takes no cache"):
        Engine(model, max_batch=2)


def test_what_a_token_leaves_in_the_cache_is_counted():
    # keys and values, 2 layers, 2 heads of 16 numbers of 4 bytes
    assert count(build("llama")).cache_bytes == 2 * 2 * 2 * 16 * 4


PRETENDED = """
import newer_transformers
from decoders import answers, build, generated
from transformers import DynamicCache
from chatsmith.models.counts import count

for family in ("llama", "bloom", "gpt_neo"):  # packed, padded, one at a time
    model = build(family)
    count(model)
    assert [answer.tokens for answer in answers(model, 0.0)] == generated(model), family
try:
    model(model.dummy_inputs["input_ids"], past_key_values=DynamicCache())
except TypeError as error:
    print("refused:", error)
"""


def test_the_engine_runs_where_the_old_name_is_gone():
    environment = os.environ | {"PYTHONPATH": str(TESTS), "WITHOUT_OLD_NAMES": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PRETENDED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    if cache_argument(build("llama")) == "cache":  # else this transformers has only the old name
        assert "past_key_values is gone in transformers 5.40" in result.stdout
