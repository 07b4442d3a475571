"""TRL's RLOO step: 16 prompts x 2 answers, no critic. Usage: trl_rloo.py MATERIAL"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from pace import Pace, PacedCallback
from transformers import AutoTokenizer
from trl import RLOOConfig, RLOOTrainer


class Watched(PacedCallback):
    def on_log(self, *_: object, logs: dict[str, Any], **__: object) -> None:
        self.answer_length = logs.get("completions/mean_length", self.answer_length)


def main(material: Path) -> None:
    pace = Pace()
    tokenizer = AutoTokenizer.from_pretrained(material / "policy")
    texts = [tokenizer.decode(ids) + " " for ids in json.loads((material / "prompts.json").read_text())]
    trainer = RLOOTrainer(
        model=str(material / "policy"),
        reward_funcs=str(material / "reward"),
        args=RLOOConfig(
            output_dir=str(material / "trl_rloo"),
            max_steps=1_000_000,  # ends with stdin
            per_device_train_batch_size=32,
            gradient_accumulation_steps=1,
            num_generations=2,
            num_iterations=1,
            max_completion_length=64,
            temperature=1.0,
            beta=0.05,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            disable_dropout=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        callbacks=[Watched(pace)],
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
