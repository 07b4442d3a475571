"""The PPO step with critic of TRL 1.12.0, the last release that holds one. Usage: trl_ppo.py MATERIAL"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from pace import Pace, PacedCallback
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main(material: Path) -> None:
    pace = Pace()
    tokenizer = AutoTokenizer.from_pretrained(material / "policy")
    dataset = Dataset.from_dict({"input_ids": json.loads((material / "prompts.json").read_text())})
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(material / "trl_ppo"),
            total_episodes=32_000_000,  # ends with stdin
            per_device_train_batch_size=32,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=1,
            response_length=64,
            temperature=1.0,
            kl_coef=0.05,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(material / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(material / "policy"),
        reward_model=AutoModelForSequenceClassification.from_pretrained(material / "reward"),
        value_model=AutoModelForSequenceClassification.from_pretrained(material / "reward"),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[PacedCallback(pace)],
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
