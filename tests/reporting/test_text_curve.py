"""A run's reward as characters: means of equal parts, from the lowest to the highest, on a terminal that has them."""

import io
import sys

import pytest
from producers import run_record, write_run

from common.files import BadInput
from reporting import text_curve
from reporting.text_curve import can_show, describe_curve, draw_levels


def test_levels_are_means_of_equal_parts():
    text, first, last = draw_levels([0, 2, 8, 8, 15, 15], width=3)
    assert (text, first, last) == ("▁▅█", 1.0, 15.0)
    assert draw_levels([3.0])[0] == "▁" and draw_levels([2, 2, 2])[0] == "▁▁▁"
    assert len(draw_levels(list(range(1000)))[0]) == 60


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_the_curve_is_for_a_terminal_and_the_path_for_everybody(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_run(
        run, run_record("pspo"), [{"step": 1, "reward": 0.25}, {"step": 2, "loss": 1}, {"step": 3, "reward": 0.5}]
    )
    assert describe_curve(run) == "reward 0.25 ▁█ 0.50, steps 1 to 3"
    monkeypatch.setattr(sys, "argv", ["text_curve", str(run)])
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        text_curve.main()
        assert f"{run}/reward_curve.png" in stream.getvalue()
        assert ("▁█" in stream.getvalue()) is stream.isatty()


def test_a_terminal_of_few_letters_gets_no_curve():
    terminal = Terminal()
    terminal.encoding = "ascii"
    assert can_show(Terminal()) and not can_show(terminal)


def test_a_run_without_rewards_is_named(tmp_path):
    with pytest.raises(BadInput, match="no log of rewards"):
        describe_curve(tmp_path)
