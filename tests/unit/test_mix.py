"""Which record goes to which stage and side, and that nothing but its first message decides it."""

import hashlib
import random
from pathlib import Path

import pytest

from chatsmith.data.mix import assign, held_out, mix
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec
from chatsmith.errors import ConfigError, DataError
from chatsmith.types import Answer, Message, Record, Stage

HH = Path("../shared/data/hh-rlhf/harmless-base-test.jsonl.gz")
SPLIT = (0.2, 0.3, 0.5)
ALL: tuple[Stage, ...] = ("sft", "reward", "rl")


def pair(question: str, *later: str) -> Record:
    prompt = [Message("user", question)]
    for turn in later:
        prompt += [Message("assistant", "Go on."), Message("user", turn)]
    return Record(prompt=tuple(prompt), answers=(Answer(f"Yes, {question}", 1.0), Answer("No.", 0.0)), origin="here:1")


def source(records: list[Record], stages: tuple[Stage, ...] = (), weight: float = 1.0) -> Source:
    return Source(Spec(stages, "here", None, weight), tuple(records), (), None)


PAIRS = [pair(f"Question {i}?") for i in range(4000)]


def stage_of(record: Record, seed: int = 0, split: tuple[float, float, float] = SPLIT) -> Stage:
    return assign(record, seed=seed, split=split, allowed=ALL)


def test_stage_follows_the_first_eight_bytes_of_the_hash() -> None:
    for record in PAIRS[:200]:
        digest = hashlib.sha256(f"7\n{record.prompt[0].content.lower()}".encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        expected = "sft" if point < 0.2 else "reward" if point < 0.5 else "rl"
        assert stage_of(record, seed=7) == expected
        assert held_out(record, 7, 0.3) == (int.from_bytes(digest[8:16], "big") / 2**64 < 0.3)


def test_shares_are_those_of_the_split_and_of_the_held_out_fraction() -> None:
    stages = [stage_of(record) for record in PAIRS]
    for stage, share in zip(ALL, SPLIT, strict=True):  # 5 standard deviations of 4000 draws are at most 0.04
        assert abs(stages.count(stage) / len(PAIRS) - share) < 0.04
    assert abs(sum(held_out(record, 0, 0.1) for record in PAIRS) / len(PAIRS) - 0.1) < 0.024
    assert not any(held_out(record, 0, 0.0) for record in PAIRS)
    assert all(held_out(record, 0, 1.0) for record in PAIRS)


def test_held_out_side_is_independent_of_the_stage() -> None:
    for stage in ALL:
        side = [held_out(record, 0, 0.5) for record in PAIRS if stage_of(record) == stage]
        assert abs(sum(side) / len(side) - 0.5) < 0.1  # 5 standard deviations of 800 draws: 0.09


def test_copies_and_continuations_fall_into_one_stage_and_side() -> None:
    moved = 0
    for i in range(200):
        first = pair(f"Où est le café {i}?")
        same = [
            pair(f"Où est le café {i}?", "And then?"),
            pair(f"  OÙ est\n\tle CAFÉ {i}? "),
            pair(f"Ou\u0300 est le cafe\u0301 {i}?"),
            Record(prompt=(Message("system", "Be brief."), *first.prompt)),
        ]
        assert {stage_of(record) for record in same} == {stage_of(first)}
        assert {held_out(record, 0, 0.5) for record in same} == {held_out(first, 0, 0.5)}
        moved += stage_of(pair(f"Where is the café {i}?")) != stage_of(first)
    assert moved > 50  # another question is free to go elsewhere


def test_seed_decides() -> None:
    assert [stage_of(record, seed=1) for record in PAIRS] == [stage_of(record, seed=1) for record in PAIRS]
    assert [stage_of(record, seed=1) for record in PAIRS] != [stage_of(record, seed=2) for record in PAIRS]
    assert [held_out(record, 1, 0.5) for record in PAIRS] != [held_out(record, 2, 0.5) for record in PAIRS]


def test_shares_are_renormalised_over_the_allowed_stages() -> None:
    stages = [assign(record, seed=0, split=SPLIT, allowed=("rl", "reward")) for record in PAIRS]
    assert "sft" not in stages
    assert abs(stages.count("reward") / len(PAIRS) - 0.375) < 0.04  # 0.3 / (0.3 + 0.5)
    assert {assign(record, seed=0, split=(1.0, 0.0, 0.0), allowed=("rl",)) for record in PAIRS} == {"rl"}
    assert {assign(record, seed=0, split=(2, 4, 0), allowed=ALL) for record in PAIRS} == {"sft", "reward"}


def test_split_without_a_share_for_the_allowed_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="no share to any of reward, rl"):
        assign(PAIRS[0], seed=0, split=(1.0, 0.0, 0.0), allowed=("reward", "rl"))


def test_every_record_lands_once_and_in_the_order_of_the_sources() -> None:
    dealt = mix([source(PAIRS[:100]), source(PAIRS[100:300])], seed=0, split=SPLIT, held_out_fraction=0.2)
    landed = [record for data in dealt.values() for side in (data.train, data.held_out) for record in side]
    assert sorted(map(id, landed)) == sorted(map(id, PAIRS[:300]))
    for data in dealt.values():
        for side in (data.train, data.held_out):
            assert list(side) == sorted(side, key=PAIRS.index)
    assert all(dealt[stage].train and dealt[stage].held_out for stage in ALL)
    assert dealt["ptx"].train == dealt["ptx"].held_out == ()


def test_reordering_and_appending_move_no_record() -> None:
    def sides(records: list[Record]) -> dict[tuple[Stage, str], set[Record]]:
        dealt = mix([source(records, weight=1.5)], seed=3, split=SPLIT, held_out_fraction=0.2)
        return {
            (stage, side): set(getattr(data, side)) for stage, data in dealt.items() for side in ("train", "held_out")
        }

    before = sides(PAIRS[:500])
    assert sides(random.Random(0).sample(PAIRS[:500], 500)) == before
    longer = sides(PAIRS[:600])
    assert all(records <= longer[place] for place, records in before.items())
    assert longer != before


def test_weight_copies_training_records_only_and_by_their_text() -> None:
    def counts(weight: float) -> tuple[int, int]:
        data = mix([source(PAIRS, ("rl",), weight)], seed=0, split=SPLIT, held_out_fraction=0.25)["rl"]
        return len(data.train), len(data.held_out)

    train, kept = counts(1.0)
    assert train + kept == len(PAIRS)
    assert counts(2.0) == (2 * train, kept)
    assert abs(counts(0.5)[0] / train - 0.5) < 0.05
    assert abs(counts(2.25)[0] / train - 2.25) < 0.05
    assert counts(0.5)[1] == counts(2.25)[1] == kept


def test_smaller_weight_keeps_a_part_of_what_a_larger_one_keeps() -> None:
    few, more = (
        set(mix([source(PAIRS, ("rl",), weight)], seed=0, split=SPLIT, held_out_fraction=0.0)["rl"].train)
        for weight in (0.3, 0.6)
    )
    assert few < more


def test_named_stages_win_over_what_the_fields_allow() -> None:
    dealt = mix([source(PAIRS[:100], ("reward",))], seed=0, split=SPLIT, held_out_fraction=0.0)
    assert {stage: len(data.train) for stage, data in dealt.items()} == {"sft": 0, "reward": 100, "rl": 0, "ptx": 0}


def test_text_goes_to_ptx_and_answered_prompts_only_where_it_is_named() -> None:
    texts = [Record(text=f"Once {i}.") for i in range(50)]
    dealt = mix([source(texts)], seed=0, split=SPLIT, held_out_fraction=0.3)
    assert len(dealt["ptx"].train) + len(dealt["ptx"].held_out) == 50
    assert dealt["ptx"].held_out
    named = mix([source(PAIRS[:50], ("ptx",))], seed=0, split=SPLIT, held_out_fraction=0.0)
    assert {stage: len(data.train) for stage, data in named.items()} == {"sft": 0, "reward": 0, "rl": 0, "ptx": 50}
    both = mix([source(PAIRS[:50], ("sft", "ptx"))], seed=0, split=SPLIT, held_out_fraction=0.3)
    assert both["sft"] == both["ptx"]
    assert len(both["sft"].train) + len(both["sft"].held_out) == 50


@pytest.mark.parametrize(
    ("record", "stage", "words"),
    [
        (Record(prompt=PAIRS[0].prompt, origin="f:3"), "sft", "lacks an answer"),
        (Record(prompt=PAIRS[0].prompt, origin="f:3"), "ptx", "lacks plain text or an answer"),
        (Record(prompt=PAIRS[0].prompt, answers=(Answer("a"),), origin="f:3"), "reward", "lacks two answers"),
        (Record(text="Once.", origin="f:3"), "rl", "lacks a prompt"),
    ],
)
def test_stage_that_a_record_cannot_serve_is_refused_by_name(record: Record, stage: Stage, words: str) -> None:
    with pytest.raises(DataError, match=rf"f:3: cannot serve the stage {stage}.*{words}"):
        mix([source([record], (stage,))], seed=0, split=SPLIT, held_out_fraction=0.0)


@pytest.mark.skipif(not HH.exists(), reason="the real data samples are not beside the repository")
def test_hh_rlhf_records_that_share_their_first_turn_stay_together() -> None:
    records = read_source(Spec((), str(HH), None), on_error="skip").records
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.prompt[0].content, []).append(record)
    shared = [group for group in groups.values() if len(group) > 1]
    assert sum(map(len, shared)) == 264  # none of the four dropped records is among them
    dealt = mix([source(list(records))], seed=0, split=SPLIT, held_out_fraction=0.1)
    place = {
        record.origin: (stage, side)
        for stage, data in dealt.items()
        for side in ("train", "held_out")
        for record in getattr(data, side)
    }
    assert len(place) == len(records)
    assert all(len({place[record.origin] for record in group}) == 1 for group in shared)
    assert len(set(place.values())) == 6  # while the file as a whole lies in all places
