"""A model whose answers are known: the next token depends on the last one alone, by a table."""

import torch
import transformers
from tiny import VOCABULARY, byte_tokenizer

CONTEXT = 4096


def bigram_model(*answers: str, forever: bool = False, context: int = CONTEXT):
    """A model that says one of `answers`, each as likely, where the default chat template lets it begin.

    `forever` begins the same answer again instead of ending it. No byte may occur twice in `answers`.
    """
    tokenizer = byte_tokenizer()
    spelled = [tokenizer(answer).input_ids for answer in answers]
    said = [token for ids in spelled for token in ids]
    (newline,) = tokenizer("\n").input_ids
    assert len({newline, *said}) == len(said) + 1, "a byte occurs twice, so what follows it would be open"
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        after = model.lm_head.weight  # after[next, last]
        for ids in spelled:
            after[ids[0], newline] = 3.0
            for last, following in zip(ids, [*ids[1:], ids[0] if forever else tokenizer.eos_token_id], strict=True):
                after[following, last] = 3.0  # times the norm's 19.6: all other tokens together have mass e^-50
    return model
