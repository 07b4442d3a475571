"""The same invariants on a CUDA device, in bf16. Skipped where there is none."""

import pytest
import torch
from tiny import FAMILIES, tiny_model

from chatsmith.data.batch import pad, pad_mask
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.models.packing import packed_hidden_states
from chatsmith.models.scoring import token_logprobs
from chatsmith.pipeline import train
from chatsmith.resolve import nested, resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_rollout_and_training_logprobs_agree(family, dtype, limit):
    model = tiny_model(family, scale=1.0).to("cuda", dtype)
    requests = [Request(tuple(p), 20, (2,), Sampling(), (1, 2)) for p in PROMPTS]
    groups = Engine(model, pad_id=0, max_batch=4).generate(requests)
    rows = [(p, c) for p, group in zip(PROMPTS, groups, strict=True) for c in group]
    tokens, lengths = pad([p + c.tokens for p, c in rows], pad_id=0)
    mask = pad_mask([[False] * len(p) + [True] * len(c.tokens) for p, c in rows]).cuda()
    with torch.no_grad():
        training, _ = token_logprobs(
            model, tokens.cuda(), lengths.cuda(), mask, temperature=1.0, max_logits_bytes=1 << 30
        )
    rollout = torch.tensor([value for _, c in rows for value in c.logprobs])
    assert (rollout - training[mask].cpu()).abs().mean() < limit


def test_packed_rows_equal_rows_alone():
    backbone = tiny_model("llama").cuda().base_model
    tokens, lengths = pad(PROMPTS, pad_id=0)
    with torch.no_grad():
        packed = packed_hidden_states(backbone, tokens.cuda(), lengths.cuda())
        for row, prompt in enumerate(PROMPTS):
            alone = backbone(input_ids=torch.tensor([prompt]).cuda()).last_hidden_state[0]
            torch.testing.assert_close(packed[row, : len(prompt)], alone, atol=1e-4, rtol=1e-3)


def test_three_stages_run_in_bf16(model_directory, tmp_path):
    rows = "".join(f'{{"prompt": "p{i}", "chosen": "yes!", "rejected": "no?"}}\n' for i in range(120))
    (tmp_path / "pairs.jsonl").write_text(rows)
    keys = {
        "actor_model": str(model_directory("llama")),
        "data.sources": [str(tmp_path / "pairs.jsonl")],
        "data.held_out": 0.2,
        "data.max_tokens": 96,
        "rl.rollouts": 8,
        "rl.minibatches": 2,
        "rl.steps": 2,
        "rl.max_new_tokens": 8,
        "engine.device": "cuda",
    }
    train(resolve([("test", nested(keys))]), tmp_path / "run", recipe="test", force=True)
    assert (tmp_path / "run" / "rl" / "actor" / "model.safetensors").exists()
