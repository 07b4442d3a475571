"""Facts about data and records token by token, drawn in a terminal; what data says is never interpreted."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from chatsmith.data.spec import ASKING, RANKING
from chatsmith.inspection.check import Facts
from chatsmith.inspection.counts import SourceFacts, StageFacts
from chatsmith.inspection.findings import SEVERITIES, Finding, Severity
from chatsmith.screen.output import Console
from chatsmith.screen.text import BARS, one_line, printable, unbroken
from chatsmith.types import Stage

if TYPE_CHECKING:  # to show tokens, torch is loaded; to check data without a model it is not
    from chatsmith.inspection.show import Row, View

STYLES: Mapping[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
MARKS: Mapping[Severity, str] = {"error": "✗", "warning": "!", "note": "·"}
LISTED_SCRIPTS = 4
FIGURES = ("median", "95 % below", "longest")
# two shades that take turns, so that the borders of tokens show
LEARNED = ("white on #14532d", "white on #1f7a45")
CONTEXT = ("grey78 on grey15", "grey78 on grey27")
SPECIAL = ("bold yellow on grey15", "bold yellow on grey27")
SPECIAL_LEARNED = ("bold yellow on #14532d", "bold yellow on #1f7a45")


def draw_facts(console: Console, facts: Facts) -> None:
    """Sources, lengths and findings, the worst at the end, where it is read first."""
    if facts.step > 1:
        _line(console, f"every {facts.step}th record was looked at", "dim")
    for source in facts.sources:
        _draw_source(console, source)
    if facts.stages:
        _draw_stages(console, facts)
    for finding in reversed(facts.findings):
        _draw_finding(console, finding)
    counts = {severity: sum(finding.severity == severity for finding in facts.findings) for severity in SEVERITIES}
    said = [f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count]
    console.print()
    _line(console, ", ".join(said) or "nothing to complain of", STYLES["error"] if facts.failed else "bold")


def _line(console: Console, text: str, style: str = "", *, indent: int = 0) -> None:
    _print(console, Text(unbroken(text), style=style), indent=indent)


def _print(console: Console, text: Text, *, indent: int = 0) -> None:
    """Folded in a terminal, every line under the first; a file or a pipe gets one line."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent)))
    else:
        console.print(Text(" " * indent).append(text), soft_wrap=True)


def _draw_source(console: Console, source: SourceFacts) -> None:
    _line(console, source.spec, "bold")
    dropped = f", {source.dropped:,} bad ones" if source.dropped else ""
    licence = f"licence: {one_line(source.licence)}" if source.licence else "no licence stated"
    _line(console, f"{source.records:,} records{dropped}; {licence}", indent=2)
    shares = list(source.scripts.items())[:LISTED_SCRIPTS]
    if shares:
        _line(console, f"letters: {', '.join(f'{name} {_percent(share)}' for name, share in shares)}", indent=2)
    dealt = [f"{stage} {train:,} + {held_out:,} held out" for stage, (train, held_out) in source.stages.items()]
    _line(console, "; ".join(dealt) or "no stage gets any of it", indent=2)
    console.print()


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or not share else f"{100 * share:.2g} %"


def _draw_stages(console: Console, facts: Facts) -> None:
    histograms = [h for stage in facts.stages.values() for h in stage.lengths.values()]
    last = max((len(h.counts) for h in histograms), default=0)
    first = min((next(i for i, count in enumerate(h.counts) if count) for h in histograms), default=0) // 2 * 2
    last += (last - first) % 2
    wide = 2 if 2 * (last - first) + 16 + sum(len(name) + 3 for name in FIGURES) <= console.width else 1
    axis = "".join(f"{_short(2 ** (number // 2)):<{2 * wide}}"[: 2 * wide] for number in range(first, last, 2))
    head = Text(f"{facts.unit:<16}", style="bold").append(axis, style="not bold dim")
    figures = "".join(f"{name:>{len(name) + 3}}" for name in FIGURES)
    console.print(head.append(figures, style="not bold dim"), soft_wrap=True)
    for name, stage in facts.stages.items():
        _draw_lengths(console, name, stage, range(first, last), wide)
    console.print()


def _draw_lengths(console: Console, name: Stage, stage: StageFacts, bins: range, wide: int) -> None:
    for row, (what, histogram) in enumerate(stage.lengths.items()):
        line = Text(f"{name if row == 0 else '':<8}", style="bold").append(f"{what:<8}", style="not bold")
        is_limited = stage.limit and what == ("prompt" if name == ASKING else "whole")
        most = max(histogram.counts)
        for number in bins:
            count = histogram.counts[number] if number < len(histogram.counts) else 0
            height = math.ceil(8 * count / most)  # the smallest bar for a single one, too
            too_long = is_limited and 2 ** (number / 2) > stage.limit
            line.append((f" {BARS}"[height]) * wide, style=f"{'red' if too_long else 'cyan'} not bold")
        numbers = (histogram.median, histogram.percentile_95, histogram.longest)
        figures = "".join(f"{number:>{len(label) + 3},}" for number, label in zip(numbers, FIGURES, strict=True))
        console.print(line.append(figures, style="not bold"), soft_wrap=True)
    dealt = f"{stage.train:,} examples to train on, {stage.held_out:,} held out"
    if stage.measured:
        dropped = f"{stage.too_long:,} of {stage.measured:,} measured are longer than {stage.limit:,} and dropped"
        dealt = f"{dealt}; {dropped}" if stage.too_long else f"{dealt}; none is longer than {stage.limit:,}"
    _line(console, dealt, "dim", indent=8)


def _short(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 else str(number)


def _draw_finding(console: Console, finding: Finding) -> None:
    share = f": {finding.count:,} of {finding.of:,} ({_percent(finding.count / finding.of)})" if finding.of else ""
    head = Text(f"{MARKS[finding.severity]} {finding.severity}  ", style=STYLES[finding.severity])
    _print(console, head.append(one_line(f"{finding.what}{share}"), style="default not bold"))
    if finding.where:
        _line(console, one_line(finding.where), "dim", indent=4)
    for example in finding.examples[: 2 if finding.severity == "note" else None]:
        place = Text(one_line(example.where), style="blue")
        _print(console, place.append(f"  {one_line(example.text)}", style="dim default"), indent=4)
    _line(console, f"→ {one_line(finding.remedy)}", indent=4)


def draw_view(console: Console, view: "View") -> None:
    """A record as a stage sees it: what is learned on green, context on grey, special tokens yellow."""
    head = Text(unbroken(view.where), style="bold")
    console.print(head.append(f"  {view.stage}", style="not bold"), soft_wrap=True)
    for row in view.rows:
        learned = sum(token.is_learned for token in row.tokens)
        count = f"{len(row.tokens)} tokens" + (
            f", {learned} of them {'the answer' if view.stage == RANKING else 'learned'}" if learned else ""
        )
        _line(console, f"{row.title}: {count}" if row.title else count, "dim")
        if row.fate:
            _line(console, row.fate, "bold red")
        _print(console, _spoken(row) if console.color_system else Text(_plain(row)))
    if view.note:
        _line(console, f"→ {view.note}", "dim")
    console.print()


def draw_legend(console: Console) -> None:
    """What the colours mean, or the marks where there are none."""
    if not console.color_system:
        _line(console, "tokens are parted by |, those learned stand in ⟦ ⟧; ↵ is a line break, ▫ part of a character")
        return
    legend = Text()
    for words, styles in (("learned, or an answer to rank", LEARNED), ("context", CONTEXT), ("special", SPECIAL)):
        legend.append(f" {words} ", style=styles[1]).append("  ")
    legend.append("each shade a token; ↵ line break, ▫ part of a character", style="dim")
    console.print(legend)


def _spoken(row: "Row") -> Text:
    text = Text()
    for number, token in enumerate(row.tokens):
        if token.is_special:
            styles = SPECIAL_LEARNED if token.is_learned else SPECIAL
        else:
            styles = LEARNED if token.is_learned else CONTEXT
        text.append(_visible(token.text), style=styles[number % 2])
    return text


def _plain(row: "Row") -> str:
    """The same without colour."""
    pieces = []
    before = False
    for token in row.tokens:
        if token.is_learned != before:
            pieces.append("⟦" if token.is_learned else "⟧")
        elif pieces:
            pieces.append("|")
        pieces.append(_visible(token.text))
        before = token.is_learned
    return "".join([*pieces, "⟧" * before])


def _visible(text: str) -> str:
    """A token's text so that a terminal can do nothing but show it."""
    return printable(text).replace("\t", "⇥").replace("\n", "↵\n") or "▫"
