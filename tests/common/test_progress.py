"""How far a job is, said in plain lines where nobody sees a terminal."""

import pytest

from common import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: clock[0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_at_most_every_half_minute(clock, capsys):
    with progress.open_bar(100, "step", "demo/pspo/seed0") as bar:
        for _ in range(100):
            clock[0] += 7
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "demo/pspo/seed0: step 5 of 100, 11 min left"  # 95 steps of 7 s
    steps = [int(line.split()[2]) for line in lines]
    assert steps == list(range(5, 101, 5))  # 35 s apart, the first multiple of 7 that is no less than 30


def test_the_first_line_waits_until_the_speed_is_known(clock, capsys):
    """A row of a batch says nothing: the first ones come together, after the whole of it."""
    bar = progress.open_bar(1000, "completion", "run")
    clock[0] += 2
    bar.update(1)
    assert capsys.readouterr().err == ""
    bar.update(49)  # a twentieth
    assert capsys.readouterr().err == "run: completion 50 of 1000, 38 s left\n"
    clock[0] += 2
    bar.update(50)
    assert capsys.readouterr().err == ""


def test_the_first_line_of_slow_work_comes_after_half_a_minute(clock, capsys):
    bar = progress.open_bar(1000, "completion", "run")
    clock[0] += 31
    bar.update(1)
    assert capsys.readouterr().err == "run: completion 1 of 1000, 8.6 h left\n"


def test_a_line_has_the_figures_of_its_moment(clock, capsys):
    bar = progress.open_bar(10, "step", "run")
    bar.set_postfix_str("reward 0.1", refresh=False)
    bar.update(1)
    clock[0] += 40
    bar.set_postfix_str("reward 0.2, validating 3/8", refresh=True)
    bar.set_postfix_str("reward 0.2, validating 4/8", refresh=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "step 1 of 10, 0 s left, reward 0.1",
        "step 1 of 10, 6 min left, reward 0.2, validating 3/8",
    ]


def test_what_an_earlier_process_did_does_not_make_this_one_faster(clock, capsys):
    bar = progress.open_bar(100, "step", "run", done=90)
    clock[0] += 60
    bar.update(1)
    assert capsys.readouterr().err == "run: step 91 of 100, 9 min left\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    from tqdm import tqdm

    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.open_bar(10, "step", "run", done=3) as bar:
        assert isinstance(bar, tqdm) and (bar.n, bar.total, bar.desc) == (3, 10, "run")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (129599, "36.0 h"),
        (129600, "1.5 days"),
    ],
)
def test_durations_for_people(seconds, text):
    assert progress.time_text(seconds) == text
