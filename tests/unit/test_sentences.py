"""Sentences: spans of the text they were read from, blocks respected, streams followed."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.sentences import complete_sentences, split_sentences
from rag.types import Span

CASES = {
    "markers": (
        "The default is 5. [1] It can grow.[2][3] Why?",
        ["The default is 5. [1]", "It can grow.[2][3]", "Why?"],
    ),
    "several_markers": ("It is 5. [1, 2] It grows. [3]", ["It is 5. [1, 2]", "It grows. [3]"]),
    "marker_as_a_word": ("[1] says so. See [2].", ["[1] says so.", "See [2]."]),
    "decimals": ("Version 2.5 is out. It needs 1.5 GB.", ["Version 2.5 is out.", "It needs 1.5 GB."]),
    "abbreviations": (
        "Use e.g. this one. See Dr. Kim, et al. and Fig. 2. The U.S. army left.",
        ["Use e.g. this one.", "See Dr. Kim, et al. and Fig. 2.", "The U.S. army left."],
    ),
    "units": (
        "It takes 5 s. Then max. 2 min. Use approx. 3 KB. Done",
        ["It takes 5 s.", "Then max. 2 min.", "Use approx. 3 KB.", "Done"],
    ),
    "quotation": ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
    "korean": (
        "기본값은 5입니다. 최대 2.5초 걸립니다! 예를 들어, 서버가 느릴 때입니다.",
        ["기본값은 5입니다.", "최대 2.5초 걸립니다!", "예를 들어, 서버가 느릴 때입니다."],
    ),
    "korean_quotation": ('그는 "왜?"라고 물었다. 그리고 떠났다.', ['그는 "왜?"라고 물었다.', "그리고 떠났다."]),
    "korean_dates": (
        "합격자 발표는 2024. 6. 10.(월)에 한다. 접수는 2024. 5. 1. ~ 5. 31.까지다. 3. 2.(토)는 쉰다.",
        ["합격자 발표는 2024. 6. 10.(월)에 한다.", "접수는 2024. 5. 1. ~ 5. 31.까지다.", "3. 2.(토)는 쉰다."],
    ),
    "korean_dates_glued": (
        "2024.3.1.부터 시행한다. 계약은 ’23. 12. 1.부터다. 값은 12.5. 다음 값은 3이다.",
        ["2024.3.1.부터 시행한다.", "계약은 ’23. 12. 1.부터다.", "값은 12.5.", "다음 값은 3이다."],
    ),
    "mixed": ("Ray를 씁니다. It is fast. 끝입니다.", ["Ray를 씁니다.", "It is fast.", "끝입니다."]),
    "wrapped": (
        "One sentence that\nwraps twice\nhere. Another.",
        ["One sentence that\nwraps twice\nhere.", "Another."],
    ),
    "narrow": ("Dear\nAll of you who are\nhere. Bye.", ["Dear\nAll of you who are\nhere.", "Bye."]),
    "blank_line": ("No full stop\n\nNext paragraph", ["No full stop", "Next paragraph"]),
    "headings": ("# Title\nText here.\n## Part two ##\nMore.", ["Title", "Text here.", "Part two ##", "More."]),
    "setext": ("Title\n=====\nText here.", ["Title", "Text here."]),
    "bullets": (
        "- one\n- [x] two. And more\n  that goes on\n* three",
        ["one", "two.", "And more\n  that goes on", "three"],
    ),
    "numbers": ("1. Run it.\n2. Open it.\n10) Close it", ["Run it.", "Open it.", "Close it"]),
    "inline_numbers": ("1. First step. 2. Second step.", ["First step.", "2. Second step."]),
    "wrapped_number": ("It was founded in the year\n1984. It grew.", ["It was founded in the year\n1984.", "It grew."]),
    "block_quote": ("> Be quick. Be kind.\n\nDone.", ["Be quick.", "Be kind.", "Done."]),
    "table": ("| a | b |\n|---|---|\n| 1 | 2. 3 |\nAfter.", ["| a | b |", "| 1 | 2. 3 |", "After."]),
    "fence": ("Run:\n```bash\nray start. now\n  ray stop\n```\nDone.", ["Run:", "ray start. now", "ray stop", "Done."]),
    "fence_bare": ("Run. It:\n```\nStart it. Go.\n```\nDone. Next", ["Run.", "It:", "Start it. Go.", "Done.", "Next"]),
    "fence_in_fence": ("```md\na. b\n```py\nSee it. Go on.\n```\nDone.", ["a. b", "See it. Go on.", "Done."]),
    "fence_cut_off": ("ray start\nray stop\n```\nDone here.", ["ray start", "ray stop", "Done here."]),
    "code_span": ("Call `a. B()` first. `x. Y`를 씁니다. 끝", ["Call `a. B()` first.", "`x. Y`를 씁니다.", "끝"]),
    "pdf_heading": (
        "Introduction\nThis line is as wide as its page and wraps near the right edge, so that\nit ends here. Next.",
        [
            "Introduction",
            "This line is as wide as its page and wraps near the right edge, so that\nit ends here.",
            "Next.",
        ],
    ),
    "windows_lines": ("One line\r\ngoes on. Two.\r\n\r\nThree", ["One line\r\ngoes on.", "Two.", "Three"]),
    "nothing": ("  \n---\n***\n\n```\n", []),
    "empty": ("", []),
}

PROSE = st.lists(
    st.sampled_from(
        [
            "The default is 5. ",
            "It is cited. [1] ",
            "Cited twice.[1][2] ",
            "It uses e.g. this. ",
            "Version 2.5 is out! ",
            "Use `a. b` here. ",
            "It takes 1.5 s. ",
            "Is it? ",
            "See Dr. Kim now. ",
            "기본값은 5입니다. ",
            "서버는 2개입니다[1]. ",
            "\n\n",
            "\n\n- A point.\n",
            "\n\n1. A step.\n2. Another.\n\n",
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)
MARKDOWN = st.lists(
    st.sampled_from(
        [
            "```\n",
            "```py\n",
            "x = 1\n",
            "| a | b |\n",
            "|--|--|\n",
            "# Head\n",
            "> q. w\n",
            "- p\n",
            "3. n\n",
            "\n",
            "Go on. ",
            "a b",
            " ",
            ". ",
            "? ",
            "[1] ",
            "`",
            '"',
            "Wide " * 15,
            "\r\n",
            "문장입니다. ",
            "---\n",
            "\u2028",
            "🙂 ",
            "2.",
            "\t",
        ]
    ),
    max_size=12,
).map("".join)
ANY_TEXT = st.one_of(MARKDOWN, st.text(max_size=80))


def texts(text: str, spans: list[Span]) -> list[str]:
    return [text[start:end] for start, end in spans]


def follow(text: str, step: int) -> list[Span]:
    """The sentences as a reader takes them from a stream that brings `step` characters at a time."""
    taken: list[Span] = []
    for end in range(step, len(text), step):
        taken += complete_sentences(text[:end], done=False, start=taken[-1][1] if taken else 0)
    return taken + complete_sentences(text, done=True, start=taken[-1][1] if taken else 0)


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_splits(text: str, expected: list[str]) -> None:
    assert texts(text, split_sentences(text)) == expected


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_spans_are_ordered_trimmed_and_say_something(text: str) -> None:
    spans = split_sentences(text)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    for sentence in texts(text, spans):
        assert sentence == sentence.strip()
        assert any(char.isalnum() for char in sentence)


@given(PROSE)
@settings(max_examples=100, deadline=None)
def test_no_word_is_lost(text: str) -> None:
    covered = set().union(*(range(start, end) for start, end in split_sentences(text)))
    lost = "".join(char for place, char in enumerate(text) if char.isalpha() and place not in covered)
    assert lost == ""


@given(PROSE, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_following_a_stream_gives_the_sentences_of_the_whole(text: str, step: int) -> None:
    assert texts(text, follow(text, step)) == texts(text, split_sentences(text))


@given(ANY_TEXT, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_following_any_stream_takes_nothing_twice(text: str, step: int) -> None:
    spans = follow(text, step)
    assert all(start < end for start, end in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


INCOMPLETE = {
    "word_may_go_on": "The default is 5",
    "decimal_may_follow": "It takes 2.",
    "marker_may_follow": "The default is 5. ",
    "marker_begun": "The default is 5. [1",
    "second_number_of_a_marker_may_follow": "The default is 5. [1, ",
    "line_may_be_wrapped": "The default is\n",
    "next_word_may_be_an_abbreviation": "It is. e",
}


@pytest.mark.parametrize("text", INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_waits_until_a_sentence_is_certain(text: str) -> None:
    assert complete_sentences(text, done=False) == []
    assert texts(text, complete_sentences(text, done=True))[0].startswith(text[:5])


def test_gives_a_sentence_when_the_next_has_begun() -> None:
    text = "The default is 5. [1] It can "
    assert texts(text, complete_sentences(text, done=False)) == ["The default is 5. [1]"]


def test_gives_a_terminated_sentence_when_its_line_has_ended() -> None:
    text = "The default is 5. [1]\n"
    assert texts(text, complete_sentences(text, done=False)) == ["The default is 5. [1]"]


def test_gives_what_ended_with_its_paragraph_though_the_next_has_hardly_begun() -> None:
    text = "One is here.\n\nTw"
    assert texts(text, complete_sentences(text, done=False)) == ["One is here."]


def test_start_leaves_out_what_was_taken() -> None:
    text = "One is here. Two is here. Three"
    assert texts(text, complete_sentences(text, done=True, start=len("One is here."))) == ["Two is here.", "Three"]
