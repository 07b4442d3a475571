"""The page of a run: what it shows, what it leaves out, and that text stays text."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatsmith.cli import main
from chatsmith.config import Config
from chatsmith.errors import RunError
from chatsmith.report import figures
from chatsmith.report.charts import CHARTS, GOLD, gold_curve
from chatsmith.report.page import write_comparison, write_report
from chatsmith.report.reading import number, read_rows, read_run
from chatsmith.report.settings import command
from chatsmith.resolve import parse_overrides, resolve

SECTIONS = {
    *("verdicts", "act", "curves", "frontier", "reward", "gold", "answers"),
    *("tokens", "training", "time", "data", "configuration"),
}
HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></textarea><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} $\\alpha$ $$",
    "'\"><a href='http://example.org'>x</a>&lt;&amp;",
]
WORLD = {"demonstrations": 3, "pairs_prompts": 2, "pairs_offline": 2, "label_noise": 0.1, "prompts": 4}
WORLD |= {"hidden": 8, "layers": 1, "heads": 1}


class Page(HTMLParser):
    """Tags, ids, references, and the text of the elements of each class."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.references, self.texts, self._open = [], [], [], {}, []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "srcset")]
        classes = (given.get("class") or "").split()
        for name in classes:
            self.texts.setdefault(name, []).append("")
        if tag not in ("meta", "br"):
            self._open.append((tag, classes))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "br"):
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        for _, classes in self._open:
            for name in classes:
                self.texts[name][-1] += data


def metrics(steps, **values):
    return [{"step": step, **{name: make(step) for name, make in values.items()}} for step in range(steps)]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def samples(count):
    return [
        {"prompt": f"question {i}", "sft": f"sft {i}", "rl": f"ppo {i}", "ema": f"ema {i}"}
        | {"sft_reward": 0.0, "rl_reward": i / 10, "ema_reward": None}
        | {"tokens": [[" two\n", 0.1 * i, -0.5], ["", -0.2, 0.3]]}
        for i in range(count)
    ]


def interval(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def full_run(directory, **config):
    """A run with everything, as the task world makes it."""
    gold = {"gold_sft": 0.4, "gold_rl": 0.6, "gold_gain": 0.2, "gold_gain_ci95": [0.1, 0.3], "gold_greedy": [0.7, 0.8]}
    rl_summary = {"reward_mean_first": 0.0, "reward_mean_last": 1.0, "reward_gain_ci95": [0.8, 1.2], **gold}
    rl_summary["gold_components"] = {"right": [0.5, 0.4], "polite": [0.7, 0.9]}
    reward_report = {
        "accuracy": interval(0.8),
        "accuracy_by_source": {"a.jsonl": interval(0.7), "b.jsonl": interval(0.9)},
        "length_rule": "longer wins",
        "length_rule_accuracy": interval(0.6),
        "pairs": 100,
        "margins": {"counts": [1, 5, 2], "edges": [-1.0, 0.0, 1.0, 2.0]},
        "reliability": [{"confidence": 0.6, "accuracy": 0.5, "pairs": 10}],
        "calibration_error": 0.1,
        "length_correlation": -0.2,
        "dropped_too_long": 3,
    }
    stages = {
        "sft": {"status": "passed", "verdict": "held-out loss fell", "summary": {}, "report": {}},
        "reward": {"status": "passed", "verdict": "sees", "summary": {}, "report": reward_report}
        | {"accuracy_by_aspect": {"right": 0.55, "polite": 0.95}},
        "rl": {"status": "passed", "verdict": "gain", "summary": rl_summary, "report": {"steps": 30}},
    }
    for entry in stages.values():
        entry |= {"warnings": ["a warning"], "seconds": 10.0}
    manifest = {
        "version": 1,
        "status": "finished",
        "recipe": "defaults",
        "config": Config().model_dump(mode="json") | {"world": WORLD} | config,
        "versions": {"torch": "2.13.0"},
        "commit": "abc",
        "threads": 2,
        "stages": stages,
        "summary": {"seconds": 60.0, "sft_loss_first": 5.0, "sft_loss_last": 1.0, "reward_accuracy": 0.8, **rl_summary},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    sft = {"sft/loss": lambda s: 5 / (1 + s), "sft/held_out_loss": lambda s: 5 / (1 + s)}
    write_rows(directory / "sft/metrics.jsonl", metrics(40, **sft))
    reward = {"reward/loss": lambda s: 0.7 - s / 100, "reward/accuracy": lambda s: 0.5 + s / 100}
    write_rows(directory / "reward/metrics.jsonl", metrics(30, **reward))
    names = ("kl", "kl_sequence", "entropy", "answer_length", "eos_rate", "truncation_rate", "explained_variance")
    names += ("clip_fraction", "grad_norm_actor", "grad_norm_critic")
    rl = {f"rl/{name}": lambda s: 0.1 + s / 50 for name in names}
    rl |= {"rl/reward_mean": lambda s: s / 30, "gold/total": lambda s: 0.4 + s / 200}
    rl |= {f"time/{phase}_s": lambda s: 1.5 for phase in ("rollout", "score", "estimate", "update", "other")}
    rl |= {"rollout/tokens_per_s": lambda s: 1000.0, "memory/peak_gib": lambda s: 0.5}
    write_rows(directory / "rl/metrics.jsonl", metrics(30, **rl))
    write_rows(directory / "rl/samples.jsonl", samples(14))
    answer = {"prompt": "asked", "answer": "said", "end": "stop", "reward": 0.5}
    write_rows(directory / "rl/answers.jsonl", [{"step": step, **answer} for step in (0, 0, 3)])
    write_rows(directory / "data/demonstrations.jsonl", [{"prompt": "p", "answer": "a"}] * 3)
    return directory


def change(directory, edit):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def sections(page):
    return SECTIONS & set(page.ids)


def test_a_full_run_has_every_section_and_every_link_of_the_page_leads_somewhere(tmp_path):
    page = Page(write_report(full_run(tmp_path / "run")))
    assert sections(page) == SECTIONS
    links = {reference.removeprefix("#") for reference in page.references}
    assert links and links <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "+0.200" in page.texts["headline"][0] and "+0.100 to +0.300" in page.texts["headline"][0]
    assert page.texts["verdict"][0].count("Supervised fine-tuning") == 1
    assert len(page.texts["verdict"]) == 3 and all("a warning" in text for text in page.texts["verdict"])
    assert len(page.source) < 1_500_000


def test_a_card_says_passed_or_what_the_result_is_unfit_for_or_failed(tmp_path):
    run = full_run(tmp_path / "run")

    def edit(manifest):
        stages = manifest["stages"]
        stages["reward"]["unfit_for"] = ["judging <b>right</b>", "long answers"]
        stages["rl"] |= {"status": "failed", "unfit_for": ["answers that end"]}
        stages["rl"]["report"]["reward_unit"] = "in standard deviations of the reward over the SFT model's answers"

    change(run, edit)
    page = Page(write_report(run))
    sft, reward, rl = page.texts["verdict"]
    assert "passed" in sft and "Unfit" not in sft and "warning, unfit" not in sft
    assert "passed with a warning" in reward and "Unfit for judging <b>right</b>; long answers" in reward
    assert "failed" in rl and "Unfit" not in rl
    assert "that answer’s reward, in standard deviations of the reward" in page.source


def test_what_a_run_does_not_have_does_not_appear(tmp_path):
    run = full_run(tmp_path / "run")
    shutil.rmtree(run / "rl")
    shutil.rmtree(run / "reward")
    change(run, lambda m: (m["stages"].pop("rl"), m["stages"].pop("reward"), m.update(status="partial")))
    change(run, lambda m: m.update(summary={"seconds": 9.0, "sft_loss_first": 5.0, "sft_loss_last": 1.0}))
    page = Page(write_report(run))
    assert sections(page) == {"verdicts", "curves", "time", "data", "configuration"}
    assert len(page.texts["verdict"]) == 1
    assert page.source.count("<svg") == 1  # the loss


def test_a_manifest_without_anything_gives_a_page_without_anything(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"status": "failed", "stages": {}, "summary": {}}))
    page = Page(write_report(run))
    assert sections(page) == {"verdicts"}
    assert "failed" in page.texts["top"][0]


STRANGE = {
    "status": "done",
    "recipe": ["r"],
    "versions": None,
    "data.0": 1,
    "config": [],
    "config.stages": "all",
    "config.world": 3,
    "stages": ["sft"],
    "stages.sft": "done",
    "stages.sft.status": "good",
    "stages.sft.warnings": "a warning",
    "stages.reward.report.accuracy": 3,
    "stages.reward.report.margins": [0.1, -0.2],
    "stages.reward.report.reliability.0.pairs": 1.5,
    "stages.rl.report.steps": -1,
    "summary.seconds": "long",
    "summary.gold_gain": [],
    "summary.gold_gain_ci95": "ab",
    "summary.gold_components.right.1": 10**400,
}


@pytest.mark.parametrize("place", STRANGE)
def test_a_value_of_another_kind_is_refused_with_its_place(tmp_path, place):
    run = full_run(tmp_path / "run")
    *above, last = (int(key) if key.isdigit() else key for key in place.split("."))

    def edit(manifest):
        manifest["data"] = [{"spec": "x"}]
        for key in above:
            manifest = manifest[key]
        manifest[last] = STRANGE[place]

    change(run, edit)
    with pytest.raises(RunError, match=rf"manifest\.json: not the manifest of a run \({re.escape(place)}") as refused:
        write_report(run)
    assert len(str(refused.value).splitlines()) == 1


def test_a_manifest_of_a_newer_version_is_refused_in_one_line_whatever_else_it_holds(tmp_path):
    run = full_run(tmp_path / "run")
    change(run, lambda m: m.update(version=3, stages=["another shape"]))
    with pytest.raises(RunError, match=r"manifest\.json: written by a newer version of chatsmith"):
        write_report(run)
    change(run, lambda m: m.update(version="3", stages={}))
    with pytest.raises(RunError, match=r"not the manifest of a run \(version"):
        write_report(run)


def test_rows_that_are_not_as_they_should_be_are_left_out(tmp_path):
    run = full_run(tmp_path / "run")
    write_rows(
        run / "rl/samples.jsonl", [{"prompt": 3}, {"prompt": "p", "rl": 1, "tokens": [["a", None, 1]]}, {"x": 1}]
    )
    strange = [{"step": "x", "rl/kl": 1}, {"step": 10**400}, {"rl/kl": 2}, {"step": 99, "rl/kl": [], "rl/entropy": {}}]
    with (run / "rl/metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in strange)
    page = Page(write_report(run))
    assert "tokens" not in sections(page) and "curves" in sections(page)
    steps, kl = read_run(run).column("rl", "rl/kl")
    assert steps == [*range(30), 99] and all(map(math.isfinite, kl[:30])) and math.isnan(kl[30])


def test_answers_of_a_run_without_a_critic_are_coloured_by_kl_alone(tmp_path):
    run = full_run(tmp_path / "run")
    with_critic = Page(write_report(run)).source
    rows = [row | {"tokens": [[text, kl, None] for text, kl, _ in row["tokens"]]} for row in samples(14)]
    write_rows(run / "rl/samples.jsonl", rows)
    page = Page(write_report(run))
    assert "tokens" in sections(page) and len(page.texts["spoken"]) == 3
    for sign in ("--v:", 'class="scale value"', "what the critic expected", ", value "):
        assert sign in with_critic and sign not in page.source, sign
    assert page.source.count("--k:") == with_critic.count("--k:") and 'title="KL −0.200 nats"' in page.source


def test_a_killed_run_says_so_and_half_a_line_is_no_line(tmp_path):
    run = full_run(tmp_path / "run")
    change(run, lambda m: (m["stages"].pop("rl"), m.update(status="running")))
    with (run / "rl/metrics.jsonl").open("ab") as file:
        file.write('{"step": 30, "rl/reward_mean": 0.9, "é'.encode()[:-1])
    assert len(read_rows(run / "rl/metrics.jsonl")) == 30
    page = Page(write_report(run))
    assert "killed" in page.texts["top"][0]
    assert "30 steps so far, no verdict" in page.texts["verdict"][-1]


def test_a_value_that_was_not_finite_is_a_gap_in_its_curve(tmp_path):
    run = full_run(tmp_path / "run")
    rows = metrics(9, **{"rl/reward_mean": lambda s: None if s == 4 else s / 9, "rl/kl": lambda s: None})
    write_rows(run / "rl/metrics.jsonl", rows)
    x, y = read_run(run).column("rl", "rl/reward_mean")
    assert len(x) == 9 and math.isnan(y[4])
    svg = figures.curves("gap", [figures.Line(x, y, "one")], percent=False, log=False, floor=None)
    assert svg.count("M ") > figures.curves(
        "gap", [figures.Line(x, x, "one")], percent=False, log=False, floor=None
    ).count("M ")
    page = Page(write_report(run))
    assert "KL per token" not in " ".join(page.texts["name"])


def test_hostile_text_is_shown_letter_by_letter_and_does_nothing(tmp_path):
    run = full_run(tmp_path / "<u>run $x$", actor_model=HOSTILE[0])
    rows = [dict(zip(("prompt", "sft", "rl", "ema"), (text,) * 4, strict=True)) for text in HOSTILE]
    write_rows(run / "rl/samples.jsonl", [row | {"tokens": [[row["rl"], 1.0, 1.0]]} for row in rows])
    text = HOSTILE[1]

    def edit(manifest):
        manifest |= {"recipe": text, "commit": text, "versions": {text: text}}
        manifest["data"] = [
            {"spec": text, "records": 1, "licence": text, "dropped": [{"origin": text, "reason": text}]}
        ]
        manifest["stages"]["rl"] |= {"verdict": text, "warnings": [text], "final_judge": text}
        report = manifest["stages"]["reward"]["report"]
        report |= {"length_rule": text, "accuracy_by_source": {text: interval(0.7), HOSTILE[2]: interval(0.6)}}
        manifest["summary"]["gold_components"] = {text: [0.1, 0.2]}

    change(run, edit)
    write_rows(run / "rl/metrics.jsonl", metrics(3, **{f"reward/{t}": lambda s: s * 1.0 for t in HOSTILE}))
    for path in (write_report(run), write_comparison(run, run)):
        page = Page(path)
        assert {"script", "img", "textarea", "u"}.isdisjoint(page.tags)
        assert page.tags.count("style") == page.tags.count("title") == 1
        assert all(reference.startswith("#") for reference in page.references)
        assert [prompt for prompt in page.texts["prompt"] if prompt in HOSTILE][: len(HOSTILE)] == HOSTILE
        assert set(HOSTILE) <= set(page.texts["said"])
        assert "<u>run $x$" in page.texts["top"][0]
        assert set(HOSTILE) <= set(page.texts["name"])  # names of rewards
    page = Page(write_report(run))
    assert "7 * 7" in "".join(page.texts["spoken"]).replace("·", " ")


def data_facts(text):
    return {
        "unit": "tokens",
        "sources": [{"spec": text, "scripts": {text: 0.75, "Han": 0.25}}],
        "stages": {
            "sft": {"limit": 8, "measured": 10, "too_long": 3}
            | {
                "lengths": {
                    "whole": {"counts": [0, 0, 2, 4, 1, 0, 0, 3], "median": 4, "percentile_95": 12, "longest": 13}
                }
            }
        },
        "findings": [
            {"severity": severity, "what": text, "remedy": text, "count": 3, "of": 12, "where": text}
            | {"examples": [{"where": text, "text": text}]}
            for severity in ("error", "note", text)
        ],
        "examples": [
            {"stage": "sft", "where": text, "note": text}
            | {
                "rows": [
                    {"title": text, "fate": text, "count": 5, "tokens": [[text, True, False], ["</s>", True, True]]}
                ]
            }
        ],
    }


@pytest.mark.parametrize("text", ["plain", *HOSTILE])
def test_what_was_found_in_the_data_is_shown_letter_by_letter(tmp_path, text):
    run = full_run(tmp_path / "run", world=None)
    change(run, lambda m: m.update(data=[{"spec": text, "records": 12, "licence": None, "dropped": []}]))
    (run / "data.json").write_text(json.dumps(data_facts(text)), encoding="utf-8")
    page = Page(write_report(run))
    assert {"script", "img", "textarea", "a href"}.isdisjoint(page.tags)
    assert f"Letters: {text} 75%, Han 25%" in page.texts["source"][0]
    assert "30.0% longer than 8, and so dropped" in page.texts["lengths"][0]
    assert "median 4, 95 % up to 12, longest 13" in page.texts["lengths"][0]
    assert page.source.count('class="low" style="height:75.0%" title="from 12"') == 1  # 2^3.5 is beyond 8
    error, _, other = page.texts["noticed"]
    assert "3 of 12 (25.00%)" in error and error.count(text) == 5
    assert other.lstrip().startswith("note")  # severities are three
    assert page.texts["learned"][1].replace("·", " ").replace("↵", "\n") == text and page.texts["special"] == ["</s>"]
    assert "3 more tokens" in page.source


def test_facts_about_data_that_make_no_sense_are_left_out(tmp_path):
    run = full_run(tmp_path / "run")
    before = write_report(run).read_bytes()
    for broken in ("{", "[]", "3", json.dumps({"stages": [1], "findings": {"a": 1}, "examples": "x"}), "[" * 100_000):
        (run / "data.json").write_text(broken, encoding="utf-8")
        assert write_report(run).read_bytes() == before
    for path, value in {
        "sources": [1],
        "sources.0.scripts": 3,
        "stages.sft.limit": "a",
        "stages.sft.lengths.whole.counts": [1, "b"],
        "findings.0.count": None,
        "examples.0.rows.0.tokens": [["a", 1, None]],
        "examples.0.rows.0.count": 10**400,
    }.items():
        strange = inner = data_facts("x")
        *above, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in above:
            inner = inner[key]
        inner[last] = value
        (run / "data.json").write_text(json.dumps(strange), encoding="utf-8")
        assert write_report(run).read_bytes() == before, path
    long = data_facts("x")
    long["stages"]["sft"]["lengths"]["x"] = {"counts": [1] * 5000}
    (run / "data.json").write_text(json.dumps(long), encoding="utf-8")
    assert len(Page(write_report(run)).texts["noticed"]) == 3


def test_control_characters_directions_and_half_characters_become_marks(tmp_path):
    run = full_run(tmp_path / "run")
    write_rows(run / "rl/samples.jsonl", [{"prompt": "a\x00b\x1b[31mc\u202ed\ud800e\tf\ng", "rl": "x"}])
    page = Page(write_report(run))
    assert page.texts["prompt"][0] == "a�b�[31mc�d�e\tf\ng"


def test_the_page_asks_the_network_for_nothing(tmp_path):
    page = Page(write_report(full_run(tmp_path / "run")))
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in page.source
    assert all(reference.startswith("#") for reference in page.references)
    assert page.source.count("url(") == page.source.count("url(#")
    assert "default-src 'none'" in page.source
    assert "http" not in page.source.replace("http-equiv", "")


def test_the_same_run_gives_the_same_bytes_whatever_the_users_settings(tmp_path):
    import matplotlib

    run = full_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert write_report(run).read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 30
    code = f"from pathlib import Path; from chatsmith.report.page import write_report; write_report(Path({str(run)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (run / "report.html").read_bytes() == first


def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never():
    code = "import sys, chatsmith.report.figures as f; assert 'matplotlib' not in sys.modules; "
    code += "f.frontier('x', [f.Line([0, 1], [0, 1], 'one')]); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_colours_follow_the_page(tmp_path):
    svg = figures.margins("m", [1, 2], [-1, 0, 1], "one")
    assert "var(--one)" in svg and "var(--bad)" in svg and "#01fe" not in svg
    assert "#01fe" not in write_report(full_run(tmp_path / "run")).read_text(encoding="utf-8")


def test_the_gold_curve_ends_with_the_finished_policy_and_the_fall_is_told(tmp_path):
    run = full_run(tmp_path / "run")
    assert gold_curve(read_run(run))[0][-1] == 30 and gold_curve(read_run(run))[1][-1] == 0.6
    page = Page(write_report(run))
    assert "agrees with the reward" in page.source and "reward up, judge down" not in page.source
    rows = read_rows(run / "rl/metrics.jsonl")
    write_rows(run / "rl/metrics.jsonl", [row | {"gold/total": 0.7 - abs(row["step"] - 10) / 100} for row in rows])
    page = Page(write_report(run))
    assert "Over-optimised" in page.source and "reward up, judge down" in page.source


def test_without_a_gold_judge_the_reward_stands_beside_its_price_and_the_final_judge_speaks(tmp_path):
    run = full_run(tmp_path / "run", world=None)
    change(run, lambda m: [m["summary"].pop(key) for key in list(m["summary"]) if key.startswith("gold")])
    change(run, lambda m: m["stages"]["rl"].update(final_judge="better: 60% of prompts"))
    rows = [{k: v for k, v in row.items() if k != "gold/total"} for row in read_rows(run / "rl/metrics.jsonl")]
    write_rows(run / "rl/metrics.jsonl", rows)
    page = Page(write_report(run))
    assert "Reward, and its price" in page.source and "gold" not in sections(page)
    assert "+1.000" in page.texts["headline"][0] and "better: 60% of prompts" in page.texts["headline"][0]


def test_every_diagram_has_words_in_the_template():
    words = (Path(figures.__file__).parent / "parts.html").read_text(encoding="utf-8")
    for chart in (*CHARTS, GOLD):
        assert f'  "{chart.title}": ["' in words


def test_the_running_mean_is_the_mean_of_a_window_and_keeps_gaps():
    values = [float(i % 2) for i in range(48)]
    smooth = figures.running_mean(values)  # windows of 5 in the middle: two or three ones in five
    assert smooth[0] == 0.0
    assert smooth[20] == pytest.approx(0.4) and smooth[21] == pytest.approx(0.6)
    assert math.isnan(figures.running_mean([1.0, math.nan, 3.0])[1])
    assert figures.is_noisy(values) and not figures.is_noisy([float(i) for i in range(48)])


def test_long_curves_are_thinned_to_means():
    x, y = figures._thinned(range(6000), [1.0] * 5999 + [math.nan], 600)
    assert len(x) == 600 and x[0] == 4.5 and set(y) == {1.0}


def test_only_ten_answers_are_in_sight_and_extremes_do_not_meet(tmp_path):
    page = Page(write_report(full_run(tmp_path / "run")))
    assert "4 more" in page.source
    best, worst = page.texts["column"]
    assert all(f"ppo {i}\n" in best and f"ppo {i}\n" not in worst for i in range(9, 14))
    assert all(f"ppo {i}\n" in worst and f"ppo {i}\n" not in best for i in range(5))


def test_answers_carry_a_mark_where_a_gold_judge_knows(tmp_path):
    run = full_run(tmp_path / "run")
    assert "right" not in Page(write_report(run)).texts
    write_rows(run / "rl/samples.jsonl", [row | {"sft_right": False, "rl_right": True} for row in samples(3)])
    page = Page(write_report(run))
    assert page.texts["right"][0] == "✓ right" and page.texts["wrong"] == ["✗ wrong"] * 3
    assert len(page.texts["who"]) > len(page.texts["right"]) + 3, "the average has none"
    assert "what the gold judge says" in page.source


def test_two_runs_have_one_scale_where_they_measure_the_same(tmp_path):
    one, two = full_run(tmp_path / "one"), full_run(tmp_path / "two")
    change(two, lambda m: m["summary"].update(gold_gain=-1.0, gold_gain_ci95=[-2.0, 0.0]))
    page = write_comparison(one, two).read_text(encoding="utf-8")
    zeros = re.findall(r'class="zero" style="left:([\d.]+)%', page)
    spans = re.findall(r'class="span" style="left:([\d.]+)%;width:([\d.]+)%', page)
    assert len(zeros) == 2 and zeros[0] == zeros[1]
    (_, narrow), (_, wide) = spans
    assert float(wide) == pytest.approx(10 * float(narrow), rel=1e-2)  # intervals of 2.0 and 0.2
    assert min(float(left) for left, _ in spans) >= 0
    change(two, lambda m: m["summary"].update(gold_gain=None, reward_gain_ci95=[-3.0, 1.2]))
    other = write_comparison(one, two).read_text(encoding="utf-8")
    assert len(set(re.findall(r'class="zero" style="left:([\d.]+)%', other))) == 2, "a gain in reward is another thing"


def test_figures_that_differ_on_one_page_say_why(tmp_path):
    run = full_run(tmp_path / "run")
    rows = metrics(30, **{"rl/reward_mean": lambda i: i / 30, "gold/total": lambda i: 0.45 + i / 200})
    write_rows(run / "rl/metrics.jsonl", rows)
    about = Page(write_report(run)).texts["prose"][0]
    assert "the curve begins at 0.450, the figures of the SFT model say 0.400" in about
    change(run, lambda m: m["summary"].update(gold_sft=0.45))
    assert "begins at" not in Page(write_report(run)).texts["prose"][0]


def test_what_differs_from_the_defaults_is_marked_and_the_command_repeats_the_run(tmp_path):
    defaults = Config().model_dump(mode="json")
    changed = {"rl": defaults["rl"] | {"kl_coef": 0.0, "rewards": ["a b.py:f", "trained"]}, "actor_model": "my model"}
    run = full_run(tmp_path / "run", world=None, **changed)
    text = command(read_run(run))
    assert text == (
        "chatsmith train --actor-model 'my model' --rl.kl_coef 0.0 --reward 'a b.py:f' trained --run-dir runs/run-again"
    )
    page = Page(write_report(run))
    marked = " ".join(page.texts["changed"])
    assert "kl_coef" in marked and "0.05" in marked and "max_new_tokens" not in marked


def test_the_command_repeats_a_run_whose_sources_are_mapped(tmp_path):
    table = {
        "source": "sft:a b.csv@2",
        "prompt": {"by": "kind", "1 x": "{Q}", "é": "{R} \\"},
        "answer": "{A}",
        "count": 7,
    }
    config = resolve([("test", {"data": {"sources": ["b.jsonl", table]}, "actor_model": "m"})])
    words = shlex.split(command(read_run(full_run(tmp_path / "run", **config.model_dump(mode="json")))))
    given = parse_overrides(words[words.index("--data.sources") : words.index("--data.sources") + 2])
    assert resolve([("test", {"actor_model": "m"}), ("command line", given)]).data == config.data


def test_a_comparison_shows_both_runs_and_what_was_set_differently(tmp_path):
    defaults = Config().model_dump(mode="json")
    one = full_run(tmp_path / "one")
    two = full_run(tmp_path / "two/deep run", rl=defaults["rl"] | {"kl_coef": 0.123})
    rows = samples(14)
    write_rows(two / "rl/samples.jsonl", [row | {"rl": f"other {i}"} for i, row in enumerate(rows[2:], 2)])
    path = write_comparison(one, two)
    assert path == one / "report-vs-deep-run.html"
    page = Page(path)
    assert {"verdicts", "curves", "frontier", "reward", "answers", "configuration"} == sections(page)
    assert "0.123" in page.source and "rl.kl_coef" in page.source and "rl.lr" not in page.source
    assert len(page.texts["verdict"]) == 6
    assert page.texts["said"][:2] == ["ppo 2", "other 2"]  # the first prompt that both were asked
    assert "Gold score" in page.texts["name"]
    elsewhere = write_comparison(one, two, tmp_path / "new/page.html")
    assert elsewhere.read_bytes() == path.read_bytes()


def test_a_directory_that_is_no_run_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="no run of chatsmith"):
        write_report(tmp_path / "nothing")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="broken"):
        write_report(tmp_path)


def test_the_command_says_where_the_page_is(tmp_path, monkeypatch, capsys):
    def chatsmith(*arguments):
        monkeypatch.setattr(sys, "argv", ["chatsmith", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, capsys.readouterr()

    run = full_run(tmp_path / "run")
    code, said = chatsmith(run)
    assert code == 0 and said.out.strip() == str(run / "report.html")
    code, said = chatsmith(run, run, "--output", tmp_path / "x.html")
    assert code == 0 and (tmp_path / "x.html").exists()
    code, said = chatsmith(tmp_path)
    assert code == 1 and said.err.startswith("RunError: ") and said.err.count("\n") == 1


def test_numbers_are_numbers():
    assert number(3) == 3.0
    assert all(math.isnan(number(value)) for value in (None, True, "3", math.inf, 10**400, [1]))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<iframe src="{uri}" style="width:{width}px;height:800px;border:0"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.title = page.scrollWidth + " of " + page.clientWidth;
}};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("compared", [False, True])
def test_a_browser_shows_it_without_complaint_and_without_scrolling_sideways(tmp_path, width, compared):
    run = full_run(tmp_path / "run")
    long = ["a" * 300, " ".join(["word"] * 200), "长" * 200]
    rows = [{"prompt": t, "sft": t, "rl": t, "ema": t, "tokens": [[t, 0.5, 0.5]], "rl_reward": 1.0} for t in long]
    write_rows(run / "rl/samples.jsonl", rows)
    data = [{"spec": "d" * 200, "records": 3, "licence": None, "dropped": [{"origin": "o" * 99, "reason": "r"}]}]
    change(run, lambda m: m.update(data=data, recipe="r" * 200))
    path = write_comparison(run, run) if compared else write_report(run)
    opened = path.read_text(encoding="utf-8").replace("<details>", "<details open>")
    path.write_text(opened, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(uri=path.as_uri(), width=width), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    options += ["--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=5000", "--window-size=1400,900", "--dump-dom", frame.as_uri()]
    done = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120)
    assert f"<title>{width} of {width}</title>" in done.stdout, done.stdout[:500]
    assert "CONSOLE" not in done.stderr
