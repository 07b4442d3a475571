"""Attention of decoding steps is the formula's, whoever computes it."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoders import build
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import chatsmith.cpu.attention as attention
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.models.attention import _attention
from chatsmith.models.way import note, way_of

needs_kernel = pytest.mark.skipif(
    shutil.which("c++") is None or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="no C++ compiler, or a processor without AVX2",
)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


class Module:
    """What transformers' own attention function reads of a layer."""

    is_causal = True
    training = False

    def __init__(self, groups):
        self.num_key_value_groups = groups


def drawn(*, rows=3, heads=4, key_heads=4, length=37, width=16, value_width=None, dtype=torch.float32):
    """Query, keys, values as slices of larger caches, and a mask with holes."""
    torch.manual_seed(length)
    query = torch.randn(rows, 1, heads, width).to(dtype).transpose(1, 2)
    keys, values = (
        torch.randn(rows + 2, key_heads, length + 9, w).to(dtype)[:rows, :, :length]
        for w in (width, value_width or width)
    )
    mask = torch.rand(rows, 1, 1, length) < 0.7
    mask[..., 5] = True
    return query, keys, values, mask


def naive(query, keys, values, mask, scale):
    """[n, 1, H, Dv] by the formula, one number at a time, in fp64."""
    rows, heads, _, _ = query.shape
    output = torch.zeros(rows, 1, heads, values.shape[3], dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            shared = head // (heads // keys.shape[1])
            seen = [t for t in range(keys.shape[2]) if mask[row, 0, 0, t]]
            q = query[row, head, 0].double()
            scores = [math.exp(scale * float(q @ keys[row, shared, t].double())) for t in seen]
            for t, score in zip(seen, scores, strict=True):
                output[row, 0, head] += score / sum(scores) * values[row, shared, t].double()
    return output


SHAPES = {
    "one head per key head": {},
    "groups of heads": {"heads": 8, "key_heads": 2},
    "one key head": {"heads": 4, "key_heads": 1},
    "width 64": {"width": 64},
    "width 128": {"width": 128},
    "values of another width": {"width": 48, "value_width": 32},
    "one token": {"length": 6, "rows": 1},
    "a width that torch computes": {"width": 20},
    "few lanes": {"width": 8},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_kernel), False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_attends_as_the_formula_says(monkeypatch, shape, kernel, dtype):
    if not kernel:
        monkeypatch.setattr(attention, "_is_compiled", lambda: False)
    query, keys, values, mask = drawn(**SHAPES[shape], dtype=dtype)
    module = Module(query.shape[1] // keys.shape[1])
    found, _ = _attention(module, query, keys, values, mask, scaling=0.3)
    expected = naive(query, keys, values, mask, 0.3)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    # fp32: sums of up to 128 terms; bf16: the result is rounded to 8 bits, in torch's kernel the weights too
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    assert (found - expected).abs().max() < tolerance
    mask[:, :, :, 5] = False
    assert (found - naive(query, keys, values, mask, 0.3)).abs().max() > tolerance, "every allowed key counts"


@needs_kernel
def test_the_compiler_is_asked_once_and_its_library_is_taken():
    attention.compiled_attention.cache_clear()
    library = attention.compiled_attention()
    assert library is not None
    attention.compiled_attention.cache_clear()
    assert attention.compiled_attention()._name == library._name


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache directory, from which the library is loaded anew."""
    monkeypatch.setenv("CHATSMITH_CACHE", str(tmp_path / "cache"))
    attention.compiled_attention.cache_clear()
    yield tmp_path / "cache"
    attention.compiled_attention.cache_clear()


@needs_kernel
@pytest.mark.parametrize("spoil", ["damaged", "of somebody else", "for others to write"])
def test_a_library_that_may_not_or_cannot_be_run_is_made_anew(cache, spoil):
    name = Path(attention.compiled_attention()._name).name
    attention.compiled_attention.cache_clear()
    library = cache / "other" / name
    os.environ["CHATSMITH_CACHE"] = str(library.parent)  # a path that this process has not loaded from
    library.parent.mkdir(mode=0o700)
    library.write_bytes(b"not a library")
    if spoil == "of somebody else":
        if os.getuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(library, 12345, 12345)
    elif spoil == "for others to write":
        library.chmod(0o666)
    assert attention.is_own(library) == (spoil == "damaged")
    assert attention.compiled_attention()._name == str(library)
    assert attention.is_own(library)


@needs_kernel
def test_a_relative_cache_directory_holds_the_library(cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATSMITH_CACHE", ".")
    assert attention.compiled_attention() is not None
    assert list(tmp_path.glob("attention-*.so"))


def test_without_a_compiler_torch_attends(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert attention.compiled_attention() is None
    assert rollout(build("llama")) == expected_rollout()


def test_a_compiler_that_fails_is_as_good_as_none(cache, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert attention.compiled_attention() is None


def rollout(model):
    requests = [Request(tuple(range(3, 9 + n)), 20, (2,), Sampling(), (n,)) for n in range(5)]
    return [group[0].tokens for group in Engine(model, max_batch=4).generate(requests)]


def expected_rollout():
    model = build("llama")
    note(model, replace(way_of(model), rows="padded", attention="theirs"))
    assert model.config._attn_implementation == "sdpa"
    return rollout(model)


@needs_kernel
def test_the_engine_uses_it_and_leaves_torchs_in_its_place(monkeypatch):
    called = []
    takes = attention.computes
    monkeypatch.setattr(attention, "computes", lambda *a: takes(*a) and not called.append(1))
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    found = rollout(build("llama"))
    assert called
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert found == expected_rollout()


@needs_kernel
def test_gradients_are_torchs_affair():
    query, keys, values, mask = drawn()
    assert attention.computes(query, keys, values, mask)
    with torch.enable_grad():
        assert not attention.computes(query, keys, values, mask)


@needs_kernel
def test_tensors_that_do_not_fit_together_are_an_error():
    query, keys, values, mask = drawn()
    for case in [(query, keys.bfloat16(), values.bfloat16(), mask), (query, keys, values, mask[..., :7])]:
        with pytest.raises(RuntimeError):
            _attention(Module(1), *case, scaling=0.3)
