"""Whether a run may be continued, by its record."""

from producers import run_record

from common.record import compare_to_continue
from maths_rewards import accuracy_reward, format_reward


def test_a_run_goes_on_with_the_rewards_it_began_with():
    there = run_record(status="running")
    assert there.config["rewards"] == [accuracy_reward.__name__, format_reward.__name__]
    fresh = run_record()
    assert compare_to_continue(there, fresh).refused == []
    fresh.config["rewards"] = ["accuracy_reward", "length_reward"]  # of the same weights
    [change] = compare_to_continue(there, fresh).refused
    assert (change.name, change.was) == ("rewards", ["accuracy_reward", "format_reward"])


def test_a_record_that_names_no_rewards_is_of_those_there_were():
    there = run_record(status="running")
    del there.config["rewards"]
    assert compare_to_continue(there, run_record()).refused == []


def test_plain_fine_tuning_has_no_rewards():
    assert "rewards" not in run_record("sft").config
