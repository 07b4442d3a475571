"""From a file of conversations to packed tokens: records per second beside TRL's, and memory with a corpus of 2 GB.

Everything reads the same file, prompt and completion as lists of messages: the alpaca-52k parts and hh-rlhf of
../shared/data, English and Chinese. The systems take turns, each time in a fresh process with a cold cache, timed from
opening the file to the packs, imports aside (peers/prepare.py). Tokenizer: byte-level BPE of 32,000 tokens, trained on
the file; a plain chat template; rows of at most 2048 tokens, packs of 2048.

- chatsmith: read, check and store each record, split by hash (all of it to sft), render, tokenise with a mask of the
  answers, store, pack rows of similar length.
- trl: `SFTTrainer` with packing (best fit), the loss on completions only: the same work. One or two processes of
  `dataset_num_proc`; the faster counts.
- trl_text: the same file as `messages`, which TRL trains on whole, prompts included: less work than ours.
- datasets: the plain way by hand: `load_dataset`, `map` in batches with chat template and tokenizer, no mask, no packs.

The fill printed is that of packs of the whole file at 2048 tokens. In training chatsmith packs the records of each
step; how full those packs are is the metric `sft/fill`.

Memory: peak over what stands after the imports, of all processes together, by proportional set size, on a file of
`--corpus-gb` made of the same records, each changed so that no two are equal.

    python benchmarks/data.py [--rounds 5] [--corpus-gb 2] [--environments DIR]

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ppo_step import environment_python, installed

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
SYSTEMS = ("chatsmith", "trl_1", "trl_2", "trl_text_2", "datasets_2")


def prepare(system: str, python: str, file: Path, tokenizer: Path) -> dict[str, float]:
    """Seconds, records, tokens, packs and peak memory of one system in a process and a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        variables = {
            **os.environ,
            "CHATSMITH_CACHE": cache,
            "HF_HOME": cache,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": "",
        }
        command = [python, str(HERE / "peers" / "prepare.py"), system, str(file), str(tokenizer)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=variables)
        peak = [0.0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        out, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"{system}:\n{err[-3000:]}")
    measured: dict[str, float] = json.loads(out.splitlines()[-1])
    measured["peak_mb"] = peak[0] - measured.pop("imports_mb")
    return measured


def _watch(pid: int, peak: list[float]) -> None:
    while (now := tree_mb(pid)) is not None:
        peak[0] = max(peak[0], now)
        time.sleep(0.2)


def tree_mb(pid: int) -> float | None:
    """Proportional set size of a process and its children, in MB; None when it is gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        line = next(row for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if row.startswith("Pss:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024 / 1e6 + sum(tree_mb(int(child)) or 0.0 for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description="Preparing data, beside TRL; see the top of this file.")
    parser.add_argument("--rounds", type=int, default=5, help="0: memory alone")
    parser.add_argument("--corpus-gb", type=float, default=2.0)
    parser.add_argument("--environments", type=Path, default=HERE / ".environments", metavar="DIR")
    options = parser.parse_args()
    trl = environment_python(options.environments.resolve() / "trl_rloo", "trl")
    load = os.getloadavg()[0]
    measured: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "peers" / "conversations.py"), str(DATA), folder]
        subprocess.run([*command, str(options.corpus_gb)], check=True)
        file, text, tokenizer = Path(folder) / "file.jsonl", Path(folder) / "text.jsonl", Path(folder) / "tokenizer"
        for number in range(1, options.rounds + 1):
            for system in SYSTEMS:
                python = sys.executable if system == "chatsmith" else trl
                measured[system].append(prepare(system, python, text if "text" in system else file, tokenizer))
            latest = (f"{system} {taken[-1]['seconds']:.1f}" for system, taken in measured.items())
            print(f"round {number} of {options.rounds}, s:", *latest, flush=True)
        corpus = Path(folder) / "corpus.jsonl"
        print("preparing the large corpus ...", flush=True)
        large = prepare("chatsmith", sys.executable, corpus, tokenizer) | {"gb": corpus.stat().st_size / 1e9}
    if not options.rounds:
        print(json.dumps({"peak_mb": large["peak_mb"], "fill": large["fill"], "corpus": large}))
        return
    medians = {
        system: {name: statistics.median(one[name] for one in every) for name in every[0]}
        for system, every in measured.items()
    }
    print(f"\n{'system':12}{'s':>8}{'records/s':>11}{'fill':>8}{'peak MB':>9}")
    for system, median in {**medians, "2 GB": large}.items():
        rate = median["records"] / median["seconds"]
        print(f"{system:12}{median['seconds']:8.2f}{rate:11.0f}{median['fill']:8.4f}{median['peak_mb']:9.0f}")
    ours = medians["chatsmith"]["seconds"]
    result: dict[str, Any] = {
        "over_trl": min(medians["trl_1"]["seconds"], medians["trl_2"]["seconds"]) / ours,
        "over_trl_text": medians["trl_text_2"]["seconds"] / ours,
        "over_datasets": medians["datasets_2"]["seconds"] / ours,
        "fill": medians["chatsmith"]["fill"],
        "peak_mb": large["peak_mb"],
        "corpus": large,
        "medians": medians,
        "rounds": measured,
        "load_before": load,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"chatsmith": installed(sys.executable), "trl": installed(trl)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
