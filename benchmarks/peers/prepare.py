"""Prepares one file with one system and prints what it took as JSON. Usage: prepare.py SYSTEM FILE TOKENIZER

Imports stand inside the functions: every system has an environment of its own. Each function is timed between its first
and second `yield`; the third gives records, tokens and packs.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

LENGTH = 2048
WINDOW = 50_000  # rows that are packed at a time


def chatsmith(file: str, tokenizer: Any) -> Any:
    from chatsmith.data.chat import stop_ids
    from chatsmith.data.mix import mix
    from chatsmith.data.sources import read_source
    from chatsmith.data.spec import parse_spec
    from chatsmith.models.passes import grouped
    from chatsmith.stages.sft import encode_best_answers

    yield
    source = read_source(parse_spec(f"sft:{file}"), on_error="raise", split_seed=0)
    data = mix([source], split=(2, 4, 4), held_out_fraction=0.0)["sft"].train
    rows, _ = encode_best_answers(tokenizer, data, stops=stop_ids(tokenizer), max_tokens=LENGTH)
    windows = (rows.lengths[start : start + WINDOW].tolist() for start in range(0, len(rows), WINDOW))
    packs = sum(len(grouped(lengths, max_tokens=LENGTH, packed=True)) for lengths in windows)
    yield
    yield len(source.records), int(rows.lengths.sum()), packs


def trl(file: str, tokenizer: Any, processes: int) -> Any:
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    yield
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset("json", data_files=file, split="train")
        config = SFTConfig(
            output_dir=folder,
            packing=True,
            max_length=LENGTH,
            dataset_num_proc=processes if processes > 1 else None,
            report_to="none",
            use_cpu=True,
        )
        trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
        packed = trainer.train_dataset
        yield
    yield len(dataset), sum(map(len, packed["input_ids"])), len(packed)


def datasets(file: str, tokenizer: Any, processes: int) -> Any:
    from datasets import load_dataset

    def tokens_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        conversations = [a + b for a, b in zip(batch["prompt"], batch["completion"], strict=True)]
        texts = tokenizer.apply_chat_template(conversations, tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False).input_ids}

    yield
    dataset = load_dataset("json", data_files=file, split="train")
    rows = dataset.map(tokens_of, batched=True, num_proc=processes, remove_columns=dataset.column_names)
    yield
    yield len(rows), 0, 0


def mb() -> float:
    """Proportional set size of this process."""
    line = next(row for row in Path("/proc/self/smaps_rollup").read_text().splitlines() if row.startswith("Pss:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    system, file, tokenizer = sys.argv[1], sys.argv[2], PreTrainedTokenizerFast.from_pretrained(sys.argv[3])
    name, _, processes = system.partition("_")
    arguments = [int(processes.rpartition("_")[2])] if processes else []
    steps = {"chatsmith": chatsmith, "trl": trl, "datasets": datasets}[name](file, tokenizer, *arguments)
    next(steps)
    imports_mb, started = mb(), time.perf_counter()
    next(steps)
    seconds = time.perf_counter() - started
    records, tokens, packs = next(steps)
    fill = tokens / (packs * LENGTH) if packs else 0.0
    print(
        json.dumps({"seconds": seconds, "records": records, "tokens": tokens, "fill": fill, "imports_mb": imports_mb})
    )
