"""The states of a job: what may follow what, for every sequence of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.lifecycle import ACTIVE, AFTER, ON_CANCEL, ON_LOSS, OVER, TERMINAL, State, may_follow


def test_the_table_knows_every_state():
    assert set(AFTER) == set(State)
    assert {State.CANCELLED, State.SUCCEEDED, State.FAILED} == TERMINAL
    assert not OVER & ACTIVE
    assert OVER | ACTIVE | {State.QUEUED} == set(State)


def test_every_state_can_be_reached_and_every_job_can_end():
    reached, ends = {State.QUEUED}, set(TERMINAL)
    for _ in State:
        reached |= {after for state in reached for after in AFTER[state]}
        ends |= {state for state in State if AFTER[state] & ends}
    assert reached == ends == set(State)


@pytest.mark.parametrize("events", [ON_CANCEL, ON_LOSS])
def test_what_an_event_makes_of_a_state_may_follow_it(events):
    assert all(may_follow(before, after) for before, after in events.items())


def test_a_request_to_cancel_changes_nothing_that_is_over_and_everything_else():
    assert set(ON_CANCEL) == set(State) - TERMINAL - {State.STOPPING}


def test_the_loss_of_an_agent_leaves_no_job_with_it():
    assert set(ON_LOSS) == ACTIVE
    assert not set(ON_LOSS.values()) & ACTIVE


@given(st.lists(st.sampled_from(list(State)), max_size=40))
def test_no_sequence_of_requests_leaves_a_terminal_state(wanted):
    state, ended = State.QUEUED, None
    for target in wanted:
        if may_follow(state, target):
            assert ended is None
            state = target
        ended = state if state in TERMINAL else None
        assert ended is None or all(not may_follow(state, other) for other in State)
