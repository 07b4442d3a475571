"""Six real sources in two languages, blended by the recipe of the benchmarks, through all three stages."""

import json
from pathlib import Path

from tiny import SHARED, require

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    *("--data.max_tokens", 200, "--data.held_out", 0.03, "--sft.epochs", 0.1, "--reward.epochs", 0.1),
    *("--rl.steps", 1, "--rl.max_new_tokens", 16),
]


def test_a_blend_of_real_sources_trains_the_three_stages(chatsmith, tmp_path):
    require(SHARED / "data" / "llama-factory")
    require(SHARED / "models")
    recipe, run = ROOT / "benchmarks" / "blend.toml", tmp_path / "run"
    checked = chatsmith("data", "check", "--recipe", recipe, small=False, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Han 93 %" in checked.stdout
    assert "garbled characters" in checked.stdout
    result = chatsmith("train", recipe, "--run-dir", run, "--force", *SHORT, small=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["stages"]) == {"sft", "reward", "rl"}
    assert [entry["records"] for entry in manifest["data"]] == [999, 1000, 1319, 2308, 100, 1000]
    assert sum(entry["dropped_count"] for entry in manifest["data"]) == 4
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Han 93%" in page
