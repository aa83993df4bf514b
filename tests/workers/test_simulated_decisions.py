"""Words, output, requests and faults of the simulated engine, without a process around them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.tokens.builtin import (
    FIRST_WORD,
    VOCABULARY,
    decode,
    encode,
    render_chat,
    token_of,
    word,
)
from penstock.core.wire import WireError
from penstock.core.wire.openai import ChatMessage, ChatRequest, CompletionRequest
from penstock.workers.decisions.simulated.faults import Faults, parse_faults
from penstock.workers.decisions.simulated.generation import Output, planned_length, seed_of
from penstock.workers.decisions.simulated.requests import EngineShape, RequestError, plan_chat, plan_completion

tokens = st.integers(0, VOCABULARY - 1)
prompts = st.lists(tokens, min_size=1, max_size=40)
SHAPE = EngineShape(("m", "alias"), max_model_len=100, default_max_tokens=20)


@given(st.lists(tokens, max_size=50))
def test_ids_become_words_and_back(ids):
    assert encode(decode(ids)) == ids


@given(st.text(max_size=200))
def test_a_text_has_as_many_tokens_as_words_and_all_lie_in_the_vocabulary(text):
    ids = encode(text)
    assert len(ids) == len(text.split())
    assert all(0 <= i < VOCABULARY for i in ids)
    assert encode(text) == ids


@given(st.text(min_size=1, max_size=12).filter(lambda t: len(t.split()) == 1))
def test_a_foreign_word_is_never_a_special_token(text):
    if word(token_of(text)) != text:
        assert token_of(text) >= FIRST_WORD


def test_every_id_has_its_own_word():
    assert len({word(token) for token in range(VOCABULARY)}) == VOCABULARY


def draw(prompt, count, seed=0):
    output = Output(prompt, seed)
    return [output.next() for _ in range(count)]


@given(prompts, st.integers(0, 30), st.integers(1, 30))
def test_output_continues_wherever_it_was_cut(prompt, cut, more):
    whole = draw(prompt, cut + more)
    assert draw(prompt + whole[:cut], more) == whole[cut:]
    assert all(FIRST_WORD <= token < VOCABULARY for token in whole)


@given(prompts, st.data())
def test_a_changed_lost_or_repeated_token_shows_at_once(prompt, data):
    place = data.draw(st.integers(0, len(prompt) - 1))
    wrong = data.draw(st.sampled_from(["changed", "lost", "repeated"]))
    if wrong == "changed":
        other = [*prompt[:place], (prompt[place] + 1) % VOCABULARY, *prompt[place + 1 :]]
    elif wrong == "lost":
        other = prompt[:place] + prompt[place + 1 :]
    else:
        other = prompt[: place + 1] + prompt[place:]
    if other and other != prompt:
        assert draw(other, 3) != draw(prompt, 3)


def test_seeds_tell_outputs_apart_and_none_is_none():
    assert seed_of(None, None, 0) == 0
    assert len({seed_of(None, None, 1), seed_of("a", None, 0), seed_of(None, 7, 0), seed_of(None, 7, 1), 0}) == 5


@given(prompts, st.integers(1, 60), st.integers(2, 30), st.integers(0, 10))
def test_the_planned_end_is_where_the_model_ends(prompt, limit, mean, least):
    count, reason, stop = planned_length(prompt, 0, limit, mean_tokens=mean, least=least)
    assert 1 <= count <= limit
    assert stop is None
    if reason == "stop":
        assert count > least
    # The end is a property of the text so far: cut anywhere before it, the rest ends at the same word.
    cut = count // 2
    rest, again, _ = planned_length(prompt + draw(prompt, cut), 0, limit - cut, mean_tokens=mean, least=least - cut)
    assert (rest, again) == (count - cut, reason)


def test_ends_come_as_often_as_asked():
    lengths = [planned_length([600 + i], 0, 100_000, mean_tokens=50)[0] for i in range(400)]
    assert 40 < sum(lengths) / len(lengths) < 60


def test_a_stop_token_ends_the_output():
    ids = draw([600], 10)
    assert planned_length([600], 0, 10, stop_ids=frozenset({ids[4]})) == (5, "stop", ids[4])


def test_a_stop_string_may_span_words():
    ids = draw([600], 10)
    stop = decode(ids[3:5])[2:-2]
    assert planned_length([600], 0, 10, stops=[stop]) == (5, "stop", stop)


def test_the_chat_template():
    messages = [ChatMessage("user", "a b"), ChatMessage("assistant", "c")]
    asked = render_chat(messages, add_generation_prompt=True, continue_final=False)
    assert asked == "<|user|> a b <|end|> <|assistant|> c <|end|> <|assistant|>"
    assert render_chat(messages, add_generation_prompt=False, continue_final=True).endswith("<|assistant|> c")
    assert render_chat(messages, add_generation_prompt=False, continue_final=False).endswith("c <|end|>")


def test_limits_of_a_completion():
    plan = plan_completion(CompletionRequest(model="alias", prompt="a b c"), SHAPE)
    assert (plan.prompt_tokens, plan.choices[0].tokens, plan.choices[0].reason) == (3, 16, "length")
    assert plan.model == "alias"
    full = plan_completion(CompletionRequest(prompt=[600] * 60, max_tokens=40), SHAPE)
    assert full.choices[0].tokens == 40
    with pytest.raises(RequestError, match="maximum context length is 100"):
        plan_completion(CompletionRequest(prompt=[600] * 60, max_tokens=41), SHAPE)


def chat(**fields):
    return ChatRequest(messages=[ChatMessage("user", "hi")], **fields)


def test_limits_of_a_chat():
    assert plan_chat(chat(), SHAPE).choices[0].tokens == 20
    assert plan_chat(chat(), SHAPE).choices[0].reason == "stop"
    assert plan_chat(chat(max_tokens=5), SHAPE).choices[0].reason == "length"
    assert plan_chat(chat(max_tokens=5, max_completion_tokens=7), SHAPE).choices[0].tokens == 7
    tight = EngineShape(("m",), max_model_len=10, default_max_tokens=20)
    short = plan_chat(chat(), tight).choices[0]
    assert (short.tokens, short.reason) == (6, "length")


@given(st.integers(1, 3), st.integers(1, 4))
def test_choices_are_numbered_prompt_by_prompt(n, count):
    plan = plan_completion(CompletionRequest(prompt=[f"p{i}" for i in range(count)], n=n, max_tokens=2), SHAPE)
    assert [choice.index for choice in plan.choices] == list(range(n * count))
    assert [choice.prompt for choice in plan.choices] == [encode(f"p{i}") for i in range(count) for _ in range(n)]
    assert len({tuple(draw(c.prompt, 2, c.seed)) for c in plan.choices}) == n * count
    assert plan.prompt_tokens == count


def test_faults_are_written_as_text():
    faults = parse_faults("slow=4, drop-events=0.5,throttle=0.7,crash@30")
    assert faults == Faults(crash_after_s=30, slow=4, clock=0.7, drop_events=0.5)
    assert parse_faults("hang", faults).slow == 4
    assert parse_faults("none", faults) == Faults()
    assert parse_faults("crash").crash_after_s == 0


@pytest.mark.parametrize("text", ["slow", "slow=0", "slow=x", "drop-events=2", "throttle=0", "explode", "crash@-1"])
def test_a_fault_that_is_none_is_an_error(text):
    with pytest.raises(WireError, match=text.split("=")[0]):
        parse_faults(text)


def test_a_long_output_does_not_go_round_in_circles():
    ids = draw([600], 20_000)
    assert len({tuple(ids[i : i + 3]) for i in range(len(ids) - 2)}) > 19_900
