"""The files and the tokenizer of data.py. Usage: conversations.py DATA FOLDER CORPUS_GB"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatsmith.data.chat import DEFAULT_TEMPLATE
from chatsmith.data.sources import read_source
from chatsmith.data.spec import parse_spec


def main(data: Path, folder: Path, corpus_gb: float) -> None:
    files = [*sorted(data.glob("alpaca-52k/*.json")), data / "hh-rlhf" / "harmless-base-test.jsonl.gz"]
    rows = []
    for file in files:
        for record in read_source(parse_spec(str(file)), on_error="skip", split_seed=0).records:
            prompt = [{"role": turn.role, "content": turn.content} for turn in record.prompt]
            rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": record.answers[0].content}]})
    with (folder / "file.jsonl").open("w") as file, (folder / "text.jsonl").open("w") as text:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            text.write(json.dumps({"messages": row["prompt"] + row["completion"]}, ensure_ascii=False) + "\n")
    written = number = 0
    with (folder / "corpus.jsonl").open("wb") as corpus:
        while written < corpus_gb * 1e9:
            row = rows[number % len(rows)]
            first = {"role": "user", "content": f"{number}. {row['prompt'][0]['content']}"}
            again = {**row, "prompt": [first, *row["prompt"][1:]]}
            written += corpus.write(json.dumps(again, ensure_ascii=False).encode() + b"\n")
            number += 1
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special, letters = ["<|end|>", "<|pad|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=32_000, special_tokens=special, initial_alphabet=letters)
    bpe.train_from_iterator((turn["content"] for row in rows for side in row.values() for turn in side), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[0], pad_token=special[1])
    tokenizer.chat_template = DEFAULT_TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
