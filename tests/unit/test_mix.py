"""Which record goes to which stage and side, and that nothing but its first message decides it."""

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chatsmith.config import Config, SourceConfig
from chatsmith.data import split
from chatsmith.data.mix import mix, unused, why_one_sided
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import STAGES, Spec
from chatsmith.data.store import Array
from chatsmith.errors import ConfigError, DataError
from chatsmith.stages.inputs import halves
from chatsmith.types import Answer, Message, Record, Stage

HH = Path("../shared/data/hh-rlhf/harmless-base-test.jsonl.gz")
SPLIT = (0.2, 0.3, 0.5)
ALL: tuple[Stage, ...] = ("sft", "reward", "rl")


def pair(question: str, *later: str) -> Record:
    prompt = [Message("user", question)]
    for turn in later:
        prompt += [Message("assistant", "Go on."), Message("user", turn)]
    return Record(prompt=tuple(prompt), answers=(Answer(f"Yes, {question}", 1.0), Answer("No.", 0.0)), origin="here:1")


def points(records: list[Record], seed: int = 0) -> Array:
    return np.array([split.point(record, seed) for record in records], split.POINT)


def source(
    records: list[Record], stages: tuple[Stage, ...] = (), weight: float = 1.0, seed: int = 0, count: int | None = None
) -> Source:
    table = None if count is None else SourceConfig(source="here", count=count)
    return Source(Spec(stages, "here", None, weight, table), tuple(records), (), None, points(records, seed), "")


PAIRS = [pair(f"Question {i}?") for i in range(4000)]


def stages_of(
    records: list[Record],
    seed: int = 0,
    shares: tuple[float, float, float] = SPLIT,
    allowed: tuple[Stage, ...] = ALL,
) -> list[Stage]:
    bits = np.full(len(records), sum(map(split.bit, allowed)), np.uint8)
    assigned = split.assign(points(records, seed), split=shares, allowed=bits)
    return [next(stage for stage in STAGES if split.bit(stage) == bit) for bit in assigned]


def held_out(records: list[Record], seed: int, fraction: float) -> list[bool]:
    return split.held_out(points(records, seed), fraction).tolist()


def test_stage_follows_the_first_eight_bytes_of_the_hash() -> None:
    for record in PAIRS[:200]:
        digest = hashlib.sha256(f"7\n{record.prompt[0].content.lower()}".encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        expected = "sft" if point < 0.2 else "reward" if point < 0.5 else "rl"
        assert stages_of([record], seed=7) == [expected]
        assert held_out([record], 7, 0.3) == [int.from_bytes(digest[8:16], "big") / 2**64 < 0.3]


def test_shares_are_those_of_the_split_and_of_the_held_out_fraction() -> None:
    stages = stages_of(PAIRS)
    for stage, share in zip(ALL, SPLIT, strict=True):  # 5 standard deviations of 4000 draws are at most 0.04
        assert abs(stages.count(stage) / len(PAIRS) - share) < 0.04
    assert abs(sum(held_out(PAIRS, 0, 0.1)) / len(PAIRS) - 0.1) < 0.024
    assert not any(held_out(PAIRS, 0, 0.0))
    assert all(held_out(PAIRS, 0, 1.0))


def test_held_out_side_is_independent_of_the_stage() -> None:
    for stage in ALL:
        side = [kept for kept, place in zip(held_out(PAIRS, 0, 0.5), stages_of(PAIRS), strict=True) if place == stage]
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
        assert set(stages_of(same)) == set(stages_of([first]))
        assert set(held_out(same, 0, 0.5)) == set(held_out([first], 0, 0.5))
        moved += stages_of([pair(f"Where is the café {i}?")]) != stages_of([first])
    assert moved > 50  # another question is free to go elsewhere


def test_seed_decides() -> None:
    assert stages_of(PAIRS, seed=1) == stages_of(PAIRS, seed=1)
    assert stages_of(PAIRS, seed=1) != stages_of(PAIRS, seed=2)
    assert held_out(PAIRS, 1, 0.5) != held_out(PAIRS, 2, 0.5)


def test_shares_are_renormalised_over_the_allowed_stages() -> None:
    stages = stages_of(PAIRS, allowed=("rl", "reward"))
    assert "sft" not in stages
    assert abs(stages.count("reward") / len(PAIRS) - 0.375) < 0.04  # 0.3 / (0.3 + 0.5)
    assert set(stages_of(PAIRS, shares=(1.0, 0.0, 0.0), allowed=("rl",))) == {"rl"}
    assert set(stages_of(PAIRS, shares=(2, 4, 0))) == {"sft", "reward"}


def test_split_without_a_share_for_the_allowed_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="no share to any of reward, rl"):
        stages_of(PAIRS[:1], shares=(1.0, 0.0, 0.0), allowed=("reward", "rl"))


def test_every_record_lands_once_and_in_the_order_of_the_sources() -> None:
    dealt = mix([source(PAIRS[:100]), source(PAIRS[100:300])], split=SPLIT, held_out_fraction=0.2)
    landed = [record for data in dealt.values() for side in (data.train, data.held_out) for record in side]
    assert sorted(map(id, landed)) == sorted(map(id, PAIRS[:300]))
    for data in dealt.values():
        for side in (data.train, data.held_out):
            assert list(side) == sorted(side, key=PAIRS.index)
    assert all(dealt[stage].train and dealt[stage].held_out for stage in ALL)
    assert not dealt["ptx"].train
    assert not dealt["ptx"].held_out


def test_reordering_and_appending_move_no_record() -> None:
    def sides(records: list[Record]) -> dict[tuple[Stage, str], set[Record]]:
        dealt = mix([source(records, weight=1.5, seed=3)], split=SPLIT, held_out_fraction=0.2)
        return {
            (stage, side): set(getattr(data, side)) for stage, data in dealt.items() for side in ("train", "held_out")
        }

    before = sides(PAIRS[:500])
    assert sides(random.Random(0).sample(PAIRS[:500], 500)) == before
    longer = sides(PAIRS[:600])
    assert all(records <= longer[place] for place, records in before.items())
    assert longer != before


def test_shards_of_a_source_are_dealt_as_the_whole() -> None:
    def places(sources: list[Source]) -> dict[Record, tuple[Stage, str]]:
        dealt = mix(sources, split=SPLIT, held_out_fraction=0.2)
        return {
            record: (stage, side)
            for stage, data in dealt.items()
            for side in ("train", "held_out")
            for record in getattr(data, side)
        }

    whole = places([source(PAIRS[:500])])
    assert places([source(PAIRS[i:500:3]) for i in range(3)]) == whole
    assert places([source(PAIRS[:500], seed=1)]) != whole


def test_weight_copies_training_records_only_and_by_their_text() -> None:
    def counts(weight: float) -> tuple[int, int]:
        data = mix([source(PAIRS, ("rl",), weight)], split=SPLIT, held_out_fraction=0.25)["rl"]
        return len(data.train), len(data.held_out)

    train, kept = counts(1.0)
    assert train + kept == len(PAIRS)
    assert counts(2.0) == (2 * train, kept)
    assert abs(counts(0.5)[0] / train - 0.5) < 0.05
    assert abs(counts(2.25)[0] / train - 2.25) < 0.05
    assert counts(0.5)[1] == counts(2.25)[1] == kept


def test_smaller_weight_keeps_a_part_of_what_a_larger_one_keeps() -> None:
    few, more = (
        set(mix([source(PAIRS, ("rl",), weight)], split=SPLIT, held_out_fraction=0.0)["rl"].train)
        for weight in (0.3, 0.6)
    )
    assert few < more


def test_a_count_is_met_exactly_and_evenly_by_the_same_records_whatever_their_order() -> None:
    def trained(count: int, records: list[Record] = PAIRS) -> list[Record]:
        dealt = mix(
            [source(records, ("rl",), count=count), source(PAIRS[:9], ("sft",))], split=SPLIT, held_out_fraction=0.0
        )
        assert len(dealt["sft"].train) == 9
        return list(dealt["rl"].train)

    some = trained(1000)
    assert len(some) == len(set(some)) == 1000
    assert set(trained(1000, PAIRS[::-1])) == set(some)
    assert set(trained(500)) < set(some)
    copies = Counter(trained(9000)).values()  # 2.25 times 4000
    assert sorted(Counter(copies).items()) == [(2, 3000), (3, 1000)]


def test_temperature_evens_out_the_sources_of_a_stage() -> None:
    few, many = PAIRS[:100], PAIRS[100:1000]

    def shares(temperature: float) -> tuple[int, int]:
        both = [source(few, ("sft",)), source(many, ("sft",))]
        train = mix(both, split=SPLIT, held_out_fraction=0.0, temperature=temperature)["sft"].train
        own = sum(record in set(few) for record in train)
        return own, len(train) - own

    assert shares(1.0) == (100, 900)
    # by hand: shares 0.1 and 0.9; square roots 0.31623 and 0.94868, which are 0.25 and 0.75 of their sum
    assert shares(2.0) == (250, 750)
    assert shares(1e9) == (500, 500)


def test_named_stages_win_over_what_the_fields_allow() -> None:
    dealt = mix([source(PAIRS[:100], ("reward",))], split=SPLIT, held_out_fraction=0.0)
    assert {stage: len(data.train) for stage, data in dealt.items() if data.train} == {"reward": 100}


def test_preferences_for_the_final_judge_share_no_question_with_those_that_are_learned() -> None:
    records = [record for i in range(300) for record in (pair(f"Question {i}?"), pair(f"Question {i}?", "And then?"))]
    for weight, kept_at_all in ((2.0, True), (0.5, False)):  # copies do not make 500 of them
        dealt = mix([source(records, ("reward",), weight)], split=SPLIT, held_out_fraction=0.0)["reward"].train
        learned, kept = halves(Config(), dealt)
        assert len(learned) + len(kept) == len(dealt)
        assert not {r.prompt[0] for r in learned} & {r.prompt[0] for r in kept}
        assert (len(kept) > 0) == kept_at_all
    many = mix([source(PAIRS, ("reward",))], split=SPLIT, held_out_fraction=0.0)["reward"].train
    assert abs(len(halves(Config(), many)[1]) / len(many) - 0.5) < 0.04


def test_named_stages_that_a_run_does_not_train_take_nothing() -> None:
    def dealt(*named: Stage, run: tuple[Stage, ...]) -> tuple[dict[Stage, int], int]:
        one = source(PAIRS[:600], named)
        counts = mix([one], split=SPLIT, held_out_fraction=0.0, stages=(*run, "ptx"))
        return {stage: len(data.train) for stage, data in counts.items() if data.train}, unused(one, (*run, "ptx"))

    assert dealt("sft", "reward", run=("sft",)) == ({"sft": 600}, 0)
    assert dealt("sft", "reward", "ptx", run=("reward",)) == ({"reward": 600, "ptx": 600}, 0)
    assert dealt("sft", "ptx", run=("rl",)) == ({"ptx": 600}, 0)
    # what serves no stage of the run stays where it is given to, as the text of mixed training may be, and is counted
    assert dealt("sft", run=("rl",)) == ({"sft": 600}, 600)
    whole = mix([source(PAIRS[:600], ALL)], split=SPLIT, held_out_fraction=0.0)
    here = mix([source(PAIRS[:600], ALL)], split=SPLIT, held_out_fraction=0.0, stages=("sft", "rl", "ptx"))
    unnamed = mix([source(PAIRS[:600])], split=SPLIT, held_out_fraction=0.0, stages=("sft", "rl", "ptx"))
    assert {stage: list(data.train) for stage, data in here.items()} == {
        stage: list(data.train) for stage, data in unnamed.items()
    }
    assert len(here["rl"].train) > len(whole["rl"].train) > 0


def test_text_goes_to_ptx_and_answered_prompts_only_where_it_is_named() -> None:
    texts = [Record(text=f"Once {i}.") for i in range(50)]
    dealt = mix([source(texts)], split=SPLIT, held_out_fraction=0.3)
    assert len(dealt["ptx"].train) + len(dealt["ptx"].held_out) == 50
    assert dealt["ptx"].held_out
    named = mix([source(PAIRS[:50], ("ptx",))], split=SPLIT, held_out_fraction=0.0)
    assert {stage: len(data.train) for stage, data in named.items() if data.train} == {"ptx": 50}
    both = mix([source(PAIRS[:50], ("sft", "ptx"))], split=SPLIT, held_out_fraction=0.3)
    assert list(both["sft"].train) == list(both["ptx"].train)
    assert list(both["sft"].held_out) == list(both["ptx"].held_out)
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
        mix([source([record], (stage,))], split=SPLIT, held_out_fraction=0.0)


def test_with_skip_a_record_goes_to_those_of_its_stages_that_it_can_serve() -> None:
    asked = Record(prompt=PAIRS[0].prompt, origin="f:3")
    both = [source([asked, PAIRS[1]], ("sft", "reward"))]
    dealt = mix(both, split=SPLIT, held_out_fraction=0.0, on_error="skip")
    assert [asked in data.train for data in dealt.values()] == [False] * 5
    assert sum(PAIRS[1] in data.train for data in dealt.values()) == 1
    assert unused(both[0], ("sft", "reward"), "skip") == 1
    dealt = mix([source([asked], ("sft", "rl"))], split=SPLIT, held_out_fraction=0.0, on_error="skip")
    assert list(dealt["rl"].train) == [asked]


def test_why_a_side_is_empty_is_said_where_all_records_share_a_prompt() -> None:
    alike = [replace(record, prompt=PAIRS[0].prompt) for record in PAIRS[:50]]
    sources = [source(PAIRS[100:101], ("rl",)), source(alike, ("sft",))]
    dealt = mix(sources, split=SPLIT, held_out_fraction=0.2)
    assert "all its 50 records have the same first message" in why_one_sided(dealt["sft"], sources)
    assert why_one_sided(dealt["rl"], sources) == why_one_sided(dealt["reward"], sources) == ""


@pytest.mark.skipif(not HH.exists(), reason="the real data samples are not beside the repository")
def test_hh_rlhf_records_that_share_their_first_turn_stay_together() -> None:
    records = read_source(Spec((), str(HH), None), on_error="skip", split_seed=0).records
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.prompt[0].content, []).append(record)
    shared = [group for group in groups.values() if len(group) > 1]
    assert sum(map(len, shared)) == 264  # none of the four dropped records is among them
    dealt = mix([source(list(records))], split=SPLIT, held_out_fraction=0.1)
    place = {
        record.origin: (stage, side)
        for stage, data in dealt.items()
        for side in ("train", "held_out")
        for record in getattr(data, side)
    }
    assert len(place) == len(records)
    assert all(len({place[record.origin] for record in group}) == 1 for group in shared)
    assert len(set(place.values())) == 8  # while the file as a whole lies in all places
