"""The answer: what a report comes to, in a few sentences made from its primary family, and its tables on a terminal.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282), which prints
the answer first, as the page shows it first.

    python -c "from reporting.answer import list_words; print(list_words(['clip', 'pspo', 'sapo']))"
"""

from collections import defaultdict

from reporting.comparison import percent, show_key, show_p
from reporting.methods import RULES, accuracy_of, show_rate
from reporting.statistics import MIN_SEEDS, compare, share_interval


def list_words(words):
    """'a', 'a and b', 'a, b and c'."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


# ---- the answer


def make_answer(rows, failures, question):
    """The sentences a report begins with: the primary family's result, what could have been seen, and failures."""
    if question.primary is None:
        return ["No run has a result: python maths_evaluations.py --model_path RUN makes one."]
    family = [row for row in rows if row.get("family") == "primary"]
    sentences = answer_family(family, question) if family else [f"Nothing is compared with {question.baseline}."]
    return [*sentences, answer_failures(failures)]


def answer_family(family, question):
    """Sentences on the primary family's rows."""
    several = len({(row["model"], row["setting_key"]) for row in family}) > 1
    judged = [row for row in family if not row["lost"]]
    of_runs = [row for row in judged if row["compared"] == "runs"]
    of_methods = [row for row in judged if row["compared"] == "methods"]
    shown = [row for row in of_methods if is_shown(row)]
    not_shown = [row for row in of_methods if not is_shown(row)]
    where = f"{question.primary[0]} at temperature {question.primary[1]:g}"
    sentences = [answer_shown(row, where, several) for row in shown]
    if not_shown:
        sentences.append(answer_not_shown(not_shown, where, several, bool(shown)))
        sentences += answer_power(not_shown, bool(shown))
    if of_runs:
        sentences.append(answer_runs(of_runs, where, several))
    sentences += answer_margin(judged, question, several)
    if lost := [row for row in family if row["lost"]]:
        names = list_words(name(row, several) for row in lost)
        sentences.append(f"There is no verdict on {names}: not all runs have a score.")
    return sentences


def is_shown(row):
    """Whether a row's method is better or worse than its baseline."""
    return row["verdict"].startswith(("better", "worse"))


def answer_shown(row, where, several):
    """One sentence on a row that is better or worse."""
    gap = percent(row["difference_low"], row["difference_high"], row["difference"], "+")
    verdict = row["verdict"].partition(",")[0]
    p = show_p(row["p_holm"])
    p = p if p.startswith("<") else f"= {p}"
    return f"{name(row, several)} is {verdict} than {row['baseline']} on {where}: {gap} points, p {p}."


def answer_not_shown(rows, where, several, others):
    """One sentence on rows of methods whose difference was not shown. others: there are some whose was."""
    methods = len({(row["model"], row["method"]) for row in rows})
    if len(rows) > methods:  # at several updates a generation
        start = f"In {len(rows)} {'other ' if others else ''}comparisons of {methods} methods none was shown"
    elif len(rows) > 1:
        start = f"Of {len(rows)} {'other ' if others else ''}methods none was shown"
    elif others:
        start = "The one other method was not shown"
    else:
        start = f"{name(rows[0], several)} was not shown"
    baselines = list_words(sorted({row["baseline"] for row in rows}))
    settings = {row["setting_key"] for row in rows}
    alike = " at the same updates a generation" if len(settings) == 1 and settings != {()} else ""
    return f"{start} to differ from {baselines}{alike} on {where}."


def name(row, several):
    """A row's method, with its model and setting where there are several of them."""
    return f"{row['method']} ({row['model']}, {row['setting']})" if several else row["method"]


def answer_power(rows, others):
    """What differences the rows' comparisons would have found, where they are methods'. others: some were found."""
    limits = [100 * row["detectable"] for row in rows if row["detectable"] is not None]
    if not limits:
        return []
    span = f"{max(limits):.0f} points or more"
    if max(limits) > 1.5 * min(limits):
        span = f"{min(limits):.0f} to {max(limits):.0f} points or more, by method,"
    start = "Of these, differences" if others else "Differences"
    return [f"{start} of {span} would have been seen in 80 of 100 such studies."]


def answer_runs(rows, where, several):
    """One sentence on rows with too few seeds to speak of a method."""
    if len(rows) > 3:
        return (
            f"{len(rows)} comparisons on {where} have fewer than {MIN_SEEDS} seeds: they speak of runs, not of methods."
        )
    said = []
    for row in rows:
        gap = percent(row["difference_low"], row["difference_high"], row["difference"], "+")
        said.append(f"{name(row, several)} is {gap} points from {row['baseline']}")
    return (
        f"On {where}, {list_words(said)}, over problems: with fewer than {MIN_SEEDS} seeds this speaks of these runs, "
        "not of the methods."
    )


def answer_margin(rows, question, several):
    """Which methods are equivalent to their baseline within the margin, where one was given."""
    if question.margin is None:
        return []
    words = f"within {100 * question.margin:g} points"
    close = [name(row, several) for row in rows if words in row["verdict"] and row["compared"] == "methods"]
    if not close and len(rows) == 1:
        return [f"{name(rows[0], several)} was not shown to lie {words} of {rows[0]['baseline']}."]
    if not close:
        return [f"None was shown to lie {words} of its baseline."]
    verb = "is" if len(close) == 1 else "are"
    return [f"{list_words(close)} {verb} {words} of {list_words(sorted({row['baseline'] for row in rows}))}."]


def answer_failures(failures):
    """How many runs of which method failed."""
    bad = [row for row in failures if row["failed"]]
    if not bad:
        return f"None of {sum(row['started'] for row in failures)} runs failed."
    several = len({(row["model"], row["setting"]) for row in failures}) > 1
    counts = [f"{row['failed']} of {row['started']} runs of {name(row, several)}" for row in bad]
    if len(counts) > 6:
        counts = [f"{sum(row['failed'] for row in bad)} of {sum(row['started'] for row in failures)} runs"]
    return f"{list_words(counts)} failed."


def explain_rules(rows, question, rule):
    """What a reader must know of the rules by which the words were chosen, a line each."""
    if question.primary is None:
        return []
    lines = [
        f"primary: {show_key(question.primary)}, p by Holm over its {count(rows, 'primary')} comparisons; everything "
        f"else is exploratory, p by Holm over all of its {count(rows, 'exploratory')}; intervals are 95 % each, not "
        "adjusted"
    ]
    paired = [row for row in rows if row.get("seeds_paired")]
    lines.append(
        f"two methods with the same seeds, from {MIN_SEEDS} on, are compared seed by seed ({len(paired)} of the "
        "comparisons); others by Welch's test; problems are always paired"
    )
    lines.append(f"a run that failed without a score of its own scores {RULES[rule]} (--failed)")
    if question.margin is not None:
        lines.append(f"within {100 * question.margin:g} points: two one-sided tests, by Holm (--margin)")
    return lines + explain_rates(rows)


def count(rows, family):
    """How many comparisons a family has."""
    return sum(row.get("family") == family for row in rows)


def explain_rates(rows):
    """What choosing among learning rates does to the primary rows, and which rates lie at the edge of their grid."""
    chosen = [row for row in rows if row["primary"] and row["rates_tried"] > 1]
    lines = []
    if any(not row["tuned_apart"] for row in chosen):
        gains = [100 * row["selection_gain"] for row in chosen if row["selection_gain"] is not None]
        lines.append(
            f"validation chose a rate among several on the very runs that are judged, which flatters a method"
            f"{show_gain(gains)}; tuning_seeds in a grid, or --tuning_seeds, choose on other runs"
        )
    for edge in ("lowest", "highest"):
        names = [f"{row['method']} ({show_rate(row['learning_rate'])})" for row in chosen if row["edge"] == edge]
        if names:
            what = f"the chosen learning rate is the {edge} that was tried, a better one may lie beyond"
            lines.append(f"{what}: {', '.join(sorted(set(names)))}")
    return lines


def show_gain(gains):
    """How many points choosing a rate on the judged runs is worth, a mean over methods; "" where it is not known."""
    if not gains:
        return ""
    mean = sum(gains) / len(gains)
    worth = "less than 0.1" if abs(mean) < 0.05 else f"{mean:+.1f}"
    return f", here by {worth} points on average"


# ---- the terminal


def print_pair(first, other, key, families):
    """A line of two runs, paired by problem, at a (data set, temperature); returns the paired difference's interval."""
    a = accuracy_of([first], key, families)
    b = accuracy_of([other], key, families)
    texts = [percent(*share_interval(x), x.mean()) for x in (a, b)]
    figures = compare(b, a)
    gap = percent(figures["difference_low"], figures["difference_high"], figures["difference"], "+")
    problems = len(first.scores[key])
    print(f"{key[0]:10} {key[1]:4g} {problems:8d}   {texts[0]:22}   {texts[1]:22}   {gap}")
    return figures["difference_low"], figures["difference_high"]


def conclude_pair(first, other, intervals):
    """The one sentence that two runs allow. intervals: {(data set, temperature): (low, high) of the difference}."""
    above = [show_key(key) for key, (low, _) in intervals.items() if low > 0]
    below = [show_key(key) for key, (_, high) in intervals.items() if high < 0]
    parts = [f"more problems than {first} on {list_words(above)}"] if above else []
    parts += [f"fewer problems than {first} on {list_words(below)}"] if below else []
    said = f"{other} solves {', and '.join(parts)}" if parts else f"{other} was not shown to differ from {first}"
    return f"{said}: one run beside another, which says nothing of a method over its seeds."


def print_methods(rows):
    """A line for each method, data set and temperature."""
    line = "{:10} {:>4} {:{width}} {:>9} {:>13}   {:21} {:22} {:>7}  {}"
    blocks = defaultdict(list)
    for row in rows:
        blocks[row["model"], row["setting"]].append(row)
    for place, block in blocks.items():
        width = max(len(row["method"]) for row in block)
        print("\n" + ", ".join(filter(None, place)))
        titles = ("data set", "T", "method", "finished", "rate", "accuracy", "difference", "p", "verdict")
        print(line.format(*titles, width=width))
        for row in block:
            print(line.format(*row_words(row), width=width).rstrip())


def row_words(row):
    """The cells of a line of print_methods."""
    rate = ""
    if row["learning_rate"] is not None:
        rate = f"{row['learning_rate']:g} of {row['rates_tried']}"
    accuracy = percent(row["low"], row["high"], row["accuracy"])
    accuracy += "*" if row["over"] == "problems" else " "
    gap = ""
    p = ""
    if "difference" in row:
        gap = percent(row["difference_low"], row["difference_high"], row["difference"], "+")
        gap += "" if row["compared"] == "methods" else "*"
        p = show_p(row["p_holm"])
    return (
        row["data_set"],
        f"{row['temperature']:g}",
        row["method"],
        f"{row['finished']} of {row['started']}",
        rate,
        accuracy,
        gap,
        p,
        row.get("verdict", ""),
    )
