"""Reading written permutations: every way in which a model's answer was ever found to be wrong, and what is kept."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import InputError
from rerank.prompting.answers import FAULTS, Answer, read_answer, written

NUMBERS = ("1", "2", "3")
LETTERS = ("A", "B", "C")


@pytest.mark.parametrize("names", [NUMBERS, LETTERS, ("1", "2", "3", "4")])
def test_every_permutation_is_read_back_as_it_was_written(names):
    for order in permutations(range(len(names))):
        assert read_answer(written(order, names), names) == Answer(order, len(names), ())


@given(st.permutations(range(25)))
def test_a_long_permutation_is_read_back_as_it_was_written(order):
    names = [str(i + 1) for i in range(25)]
    assert read_answer(written(order, names), names) == Answer(tuple(order), 25, ())


WELL_FORMED = {
    "as asked": "[3] > [1] > [2]",
    "without blanks": "[3]>[1]>[2]",
    "blanks around": "\n  [3] > [1] > [2]\n\n",
    "one a line": "[3] >\n[1] >\n[2]",
    "marked": "<answer>[3] > [1] > [2]</answer>",
    "marked with blanks": "<answer>\n[3] > [1] > [2]\n</answer>\n",
    "words before the mark": "Passage 2 is in the top 10, [2] > [1] is wrong. <answer>[3] > [1] > [2]</answer>",
    "the last mark counts": "<answer>[1] > [2] > [3]</answer> No: <answer>[3] > [1] > [2]</answer>",
    "after thinking": "<think>[2] beats [1] and [3]: 2, 1, 3</think>\n[3] > [1] > [2]",
    "after thinking whose beginning the template wrote": "so [2] > [1]</think>[3] > [1] > [2]",
    "after thinking, marked": "<think>maybe <answer>[2]</answer></think>so: <answer>[3] > [1] > [2]</answer>",
}


@pytest.mark.parametrize("text", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_a_well_formed_answer_has_no_fault(text):
    assert read_answer(text, NUMBERS) == Answer((2, 0, 1), 3, ())


# text -> (order, named, faults) for the names 1, 2, 3
FAULTY = {
    "": ((0, 1, 2), 0, ("empty",)),
    " \n\t": ((0, 1, 2), 0, ("empty",)),
    "<answer></answer>": ((0, 1, 2), 0, ("empty",)),
    "<answer>": ((0, 1, 2), 0, ("empty", "unclosed")),
    "<think>[3] > [1] > [2]</think>": ((0, 1, 2), 0, ("empty",)),
    "<think>hm, [3] > [1] > [2]": ((0, 1, 2), 0, ("empty", "unclosed")),
    "<think><answer>[3] > [1] > [2]</answer>": ((0, 1, 2), 0, ("empty", "unclosed")),
    "<think>a</think><think>[3] > [1] > [2]": ((0, 1, 2), 0, ("empty", "unclosed")),
    "[0] > [3] > [1] > [2]": ((2, 0, 1), 3, ("unknown",)),
    "[0]": ((0, 1, 2), 0, ("unknown", "missing")),
    "[3] > [4] > [1] > [2]": ((2, 0, 1), 3, ("unknown",)),
    "[-1] > [3] > [1] > [2]": ((2, 0, 1), 3, ("words",)),
    "[03] > [1] > [2]": ((0, 1, 2), 2, ("unknown", "missing")),
    "[1.0] > [3] > [2]": ((2, 1, 0), 2, ("words", "missing")),
    "[99999999999999999999999] > [3] > [1] > [2]": ((2, 0, 1), 3, ("unknown",)),
    "[3] > [3] > [1] > [2]": ((2, 0, 1), 3, ("repeated",)),
    "[3] > [1] > [3]": ((2, 0, 1), 2, ("repeated", "missing")),
    "[3] > [3] > [3]": ((2, 0, 1), 1, ("repeated", "missing")),
    "[3]": ((2, 0, 1), 1, ("missing",)),
    "[3] > [1]": ((2, 0, 1), 2, ("missing",)),
    "three > one > two": ((0, 1, 2), 0, ("words", "missing")),
    "[three] > [one] > [two]": ((0, 1, 2), 0, ("words", "missing")),
    "3 > 1 > 2": ((0, 1, 2), 0, ("words", "missing")),
    "3, 1, 2": ((0, 1, 2), 0, ("words", "missing")),
    "312": ((0, 1, 2), 0, ("words", "missing")),
    "none of the top 10 beats [3]": ((0, 1, 2), 0, ("words", "missing")),
    "I ranked the top 3 by 2 criteria in 1 minute.": ((0, 1, 2), 0, ("words", "missing")),
    "I cannot help with that.": ((0, 1, 2), 0, ("words", "missing")),
    "1. [3]\n2. [1]\n3. [2]": ((0, 1, 2), 0, ("words", "missing")),
    '{"order": [3, 1, 2]}': ((0, 1, 2), 0, ("words", "missing")),
    "[3, 1, 2]": ((0, 1, 2), 0, ("words", "missing")),
    "[]": ((0, 1, 2), 0, ("words", "missing")),
    "[[3]] > [1]": ((0, 1, 2), 0, ("words", "missing")),
    "[ 3 ] > [1] > [2]": ((0, 1, 2), 2, ("words", "missing")),
    "Here it is: [3] > [1] > [2]": ((2, 0, 1), 3, ("words",)),
    "[3] > [1] > [2]. I hope this helps!": ((2, 0, 1), 3, ("words",)),
    "**[3] > [1] > [2]**": ((2, 0, 1), 3, ("words",)),
    "```\n[3] > [1] > [2]\n```": ((2, 0, 1), 3, ("words",)),
    "[3], [1], [2]": ((0, 1, 2), 0, ("words", "missing")),
    "[3] [1] [2]": ((0, 1, 2), 0, ("words", "missing")),
    "None of [2], [3] is relevant. Best first: [3] > [1]": ((2, 0, 1), 2, ("words", "missing")),
    "[2] > [1] is clear. So: [3] > [2] > [1]": ((2, 1, 0), 3, ("words",)),
    "[3] > [2] > [1]. In short, [3] > [1]": ((2, 0, 1), 2, ("words", "missing")),
    "[1] says '[3] > [2] > [1]'. Mine: [1] > [2] > [3]": ((0, 1, 2), 0, ("words", "missing")),
    "[1] > [2] > [3]. But [3] says '[3] > [1]'": ((0, 1, 2), 0, ("words", "missing")),
    "[1] > [2] > [1], or rather [2] > [1] > [3]": ((0, 1, 2), 0, ("words", "missing")),
    "[7] > [8]; [8] > [7] > [3]": ((0, 1, 2), 0, ("words", "missing")),
    "[3] > [1] > [2] >": ((2, 0, 1), 3, ("words",)),
    "> [3] > [1] > [2]": ((2, 0, 1), 3, ("words",)),
    "[3] = [1] > [2]": ((0, 1, 2), 2, ("words", "missing")),
    "[3] < [1] < [2]": ((0, 1, 2), 0, ("words", "missing")),
    "[1] is off topic. [3] > [1] > [2]": ((2, 0, 1), 3, ("words",)),
    "[3] > [1] > [2": ((2, 0, 1), 2, ("words", "missing")),
    "[3] > [1] > [": ((2, 0, 1), 2, ("words", "missing")),
    "<answer>[3] > [1] > [2]": ((2, 0, 1), 3, ("unclosed",)),
    "<answer>[3] > [1] >": ((2, 0, 1), 2, ("words", "missing", "unclosed")),
    "[3] > [1] > [2]</answer>": ((2, 0, 1), 3, ("words",)),
    "<answer>[3] > [1] > [2]</answer> and so on": ((2, 0, 1), 3, ("words",)),
    "<answer>[3] > [1] > [2]</answer></answer>": ((2, 0, 1), 3, ("words",)),
    "<ANSWER>[3] > [1] > [2]</ANSWER>": ((2, 0, 1), 3, ("words",)),
    "[\u0663] > [\u0661] > [\u0662]": ((0, 1, 2), 0, ("words", "missing")),
    "[\uff13] > [\uff11] > [\uff12]": ((0, 1, 2), 0, ("words", "missing")),
    "[\u00b3] > [\u00b9] > [\u00b2]": ((0, 1, 2), 0, ("words", "missing")),
    "[3] \uff1e [1] \uff1e [2]": ((0, 1, 2), 0, ("words", "missing")),
    "[A] > [B]": ((0, 1, 2), 0, ("words", "missing")),
    "Sure! [2] > [9] > [2]": ((1, 0, 2), 1, ("words", "unknown", "repeated", "missing")),
}


@pytest.mark.parametrize(("text", "expected"), FAULTY.items(), ids=[repr(text) for text in FAULTY])
def test_a_fault_is_named_and_the_rest_keeps_the_order_in_which_it_was_shown(text, expected):
    assert read_answer(text, NUMBERS) == Answer(*expected)


LETTERED = {
    "[C] > [A] > [B]": ((2, 0, 1), 3, ()),
    "[C] > [D] > [A] > [B]": ((2, 0, 1), 3, ("unknown",)),
    "[c] > [A] > [B]": ((0, 1, 2), 2, ("unknown", "missing")),
    "[1] > [A] > [B] > [C]": ((0, 1, 2), 3, ("unknown",)),
    "[first] > [C] > [A] > [B]": ((2, 0, 1), 3, ("words",)),
    "A > B > C": ((0, 1, 2), 0, ("words", "missing")),
}


@pytest.mark.parametrize(("text", "expected"), LETTERED.items(), ids=LETTERED.keys())
def test_names_may_be_letters(text, expected):
    assert read_answer(text, LETTERS) == Answer(*expected)


def test_one_candidate_and_none_have_their_own_well_formed_answers():
    assert read_answer("[1]", ["1"]) == Answer((0,), 1, ())
    assert read_answer("", []) == Answer((), 0, ())
    assert read_answer("[1]", []) == Answer((), 0, ("unknown",))


def test_two_candidates_of_one_name_are_refused():
    with pytest.raises(InputError, match="one name"):
        read_answer("[1]", ["1", "1"])


PARTS = ("[1]", "[2]", "[3]", "[0]", "[7]", "[three]", " > ", ">", ",", " ", "\n", "[", "]", "3", "so", "<answer>")
PARTS = (*PARTS, "</answer>", "<think>", "</think>")


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join) | st.text(max_size=60))
def test_whatever_was_said_the_order_holds_each_candidate_once(text):
    answer = read_answer(text, NUMBERS)
    assert sorted(answer.order) == [0, 1, 2]
    assert answer.order[answer.named :] == tuple(sorted(answer.order[answer.named :]))
    assert list(answer.faults) == [fault for fault in FAULTS if fault in answer.faults]
    assert answer.faults or answer.named == 3


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
def test_only_an_answer_that_is_written_out_whole_has_no_fault(text):
    if not read_answer(text, NUMBERS).faults:
        compact = "".join(text.split())
        assert any("".join(written(order, NUMBERS).split()) in compact for order in permutations(range(3)))


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 200_000, "[1" * 100_000, "[1] " * 50_000 + "x", " " * 200_000 + "[1]x", "<answer>" * 25_000),
        *("[1] > " * 40_000 + "[", "[1] > [2] x " * 20_000, ("[1]" + " " * 3_000) * 70 + "x"),
    ],
)
def test_a_text_made_to_be_slow_is_read_at_once(text):
    import time

    before = time.process_time()
    read_answer(text, NUMBERS)
    assert time.process_time() - before < 1.0
