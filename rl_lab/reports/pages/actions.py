"""Success and completion steps of every policy, how its episodes ended, and films of those that end differently.

Tables with intervals and paired gains, charts round by round; two policies side by side on film.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rl_lab.common.stats import EPISODE_METHODS
from rl_lab.reports.benchmark import benchmark_lines, episodes_text, has_several_cells, success_table, table_text
from rl_lab.reports.estimates import CAPPED_STEPS, STEPS, SUCCESS, Estimate, gain_rows, score_rows, text_table
from rl_lab.reports.experience import experience
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, p_text, percent, points, rate
from rl_lab.reports.pages.charts import Axis, Series, chart, colours, interval_bar
from rl_lab.reports.pages.markup import Cell, Markup, Tile, data_uri, macros, parts, tile
from rl_lab.reports.run import BASE, EpisodeResult, LoadedRun, label, parse_node, study_place

ACTIONS = macros("actions")
STANDINGS = {
    "above": "the interval lies above 0",
    "below": "the interval lies below 0",
    "open": "the interval includes 0, no difference is shown",
}


def episode_summary(run: LoadedRun, table: Sequence[Estimate]) -> Row:
    """Scores, paired gains, collection counts and verdict of a run on episodes."""
    last = {evaluation.method: evaluation for evaluation in sorted(run.evaluations, key=lambda one: one.round)}
    return {
        "method": run.method,
        "control": run.control,
        "evaluation_seeds": (run.config.get("eval") or {}).get("seeds"),
        "scores": score_rows(run, table),
        "gains": gain_rows(table),
        "benchmark": [
            {"method": one.method, "round": one.round}
            | success_table((e.task, e.variant, e.success) for e in one.episodes)
            for one in last.values()
        ],
        "collection": [{"node": p.node, "method": p.method, "round": p.round, **p.counts} for p in run.pairs],
        "experience": experience(run),
        "seed_overlap": seed_overlap(run),
        "intervals": EPISODE_METHODS,
        "verdict": episode_verdict(run, table),
    }


def seed_overlap(run: LoadedRun) -> list[int]:
    """Environment seeds that are in a preference pair and in an evaluation as well; must be empty."""
    trained = {pair.seed for pair_set in run.pairs for pair in pair_set.index}
    return sorted({e.seed for evaluation in run.evaluations for e in evaluation.episodes} & trained)


def episode_verdict(run: LoadedRun, table: Sequence[Estimate]) -> list[str]:
    """What the run showed in episodes, as sentences with numbers."""
    success = find_all(table, how=SUCCESS, scope=OVERALL)
    base, method, last = find(success, model=BASE), run.method, run.last_round(run.method)
    if method is None:
        return [f"The base policy solves {_rate(base)}." if base else "No policy was evaluated."]
    final = find(success, model=method, round=last, over=None)
    assert final is not None, "a method of the run has a score"
    before = f", the base policy {_rate(base)}" if base else ""
    sentences = [f"After {last} round{'s' * (last != 1)} {label(method)} solves {_rate(final)}{before}."]
    names = {BASE: "the base policy"}
    if run.control:
        names[run.control] = f"{label(run.control)} after the same round"
    for over, name in names.items():
        found = find(success, model=method, round=last, over=over)
        if found is not None:
            sentences.append(_gain_sentence(found, name))
    steps = find(table, how=STEPS, scope=OVERALL, model=method, round=last, over=BASE)
    if steps is not None:
        sentences.insert(2, _speed_sentence(steps))
    if run.control is None:
        sentences.append("No control was run: the gain over the base policy does not say what caused it.")
    return sentences


def _rate(one: Estimate) -> str:
    return f"{one.successes} of {one.n} ({rate(one.value)} %, 95 % interval {one.ends()})"


def _gain_sentence(gain: Estimate, over: str) -> str:
    if gain.refused is not None:
        return f"No paired gain over {over}: {gain.refused}."
    return (
        f"Paired gain over {over}: {points(gain.value)} points, 95 % interval {gain.ends()} (n = {gain.n}, "
        f"{gain.won} episodes won, {gain.lost} lost, p {p_text(gain.p)}); {STANDINGS[gain.standing]}."
    )


def _speed_sentence(steps: Estimate) -> str:
    span = f"95 % interval {steps.ends(lambda value: f'{value:+.1f}')}"
    return f"On the {steps.n} episodes that both solve, control steps change by {steps.value:+.1f} ({span})."


def _rates(summary: Row, scope: str = OVERALL) -> list[Estimate]:
    """Success of every policy."""
    return find_all(summary["estimates"], how=SUCCESS, scope=scope, over=None)


def _methods(summary: Row, scope: str = OVERALL) -> list[str]:
    """Methods with an evaluation, in the order of the stages."""
    return list(dict.fromkeys(one.model for one in _rates(summary, scope) if one.model != BASE))


def method_colours(summary: Row) -> dict[str, str]:
    """Method -> CSS class: the method under test first, its control grey, the rest as they come."""
    return colours(sorted(_methods(summary), key=lambda method: method != summary["method"]), summary["control"])


def _overs(summary: Row) -> list[str]:
    """What every policy is held against."""
    return [BASE, *([summary["control"]] if summary["control"] else [])]


def _policies(summary: Row, scope: str) -> Iterator[tuple[Estimate, list[Estimate | None], list[str]]]:
    """Success of every policy, its paired differences, and its mean steps in words: of successes, and capped."""
    table = find_all(summary["estimates"], scope=scope)
    for one in _rates(summary, scope):
        own = find_all(table, model=one.model, round=one.round)
        steps = [find(own, how=how, over=None) for how in (STEPS, CAPPED_STEPS)]
        texts = ["" if mean is None else f"{mean.value:.0f}" for mean in steps]
        yield one, [find(own, how=SUCCESS, over=over) for over in _overs(summary)], texts


def score_table(summary: Row, scope: str, caption: str | None = None) -> Markup:
    """One row a policy: n, success with interval, paired differences, completion steps."""
    names = ["Over base", *(f"Over {label(over)}" for over in _overs(summary)[1:])]
    head = ["Policy", "n", "Success", "", "95 % interval", *names, "Steps, successes", "Steps, capped"]
    rows = []
    for one, gains, steps in _policies(summary, scope):
        cells = [label(one.model, one.round), one.n, parts.bold(percent(one.value)), interval_bar(one, (0.0, 1.0))]
        rows.append([*cells, f"{one.ends()} %", *gains, *steps])
    return parts.table(head, rows, caption, "numbers")


def score_lines(summary: Row, scope: str = OVERALL) -> str:
    """The same for the terminal."""
    names = [f"over {label(over)}" for over in _overs(summary)]
    rows = [
        [label(one.model, one.round), one.n, f"{rate(one.value)} %", f"{one.ends()} %", *gains, *steps]
        for one, gains, steps in _policies(summary, scope)
    ]
    return text_table(["policy", "n", "success", "95 % interval", *names, "steps", "capped"], rows)


def _round_series(summary: Row, scope: str, how: str, said: str) -> Iterator[Series]:
    """Every method's means after each round, from the base's on; last the base, a point that the axis names."""
    means = find_all(summary["estimates"], how=how, scope=scope, over=None)
    base = [(0.0, one) for one in find_all(means, model=BASE)]
    methods, css = _methods(summary, scope), method_colours(summary)
    for place, method in enumerate([*methods, BASE]):
        shift = 0.07 * (place - (len(methods) - 1) / 2)
        own = [(one.round + shift, one) for one in find_all(means, model=method) if method != BASE]
        labels = [f"{label(one.model, one.round)}{said.format(one)}" for _, one in base + own]
        bare, dashed = 0 if method == BASE else len(base), how == CAPPED_STEPS
        name, scale = "" if method == BASE else label(method), 100 if how == SUCCESS else 1
        yield Series.through(name, base + own, css[method], scale, labels=labels, bare=bare, dashed=dashed)


def _charts(summary: Row, scope: str) -> Markup:
    """Before and after each round: success with Wilson intervals, and completion steps."""
    last = max(one.round for one in _rates(summary, scope))
    ticks = [(0, "base"), *((k, f"round {k}") for k in range(1, last + 1))]
    rounds = Axis("evaluated after", (-0.3, last + 0.3), ticks)
    success = list(_round_series(summary, scope, SUCCESS, ": {0.successes} of {0.n}"))
    steps = list(_round_series(summary, scope, STEPS, ", successes: {0.value:.0f} steps"))
    steps += _round_series(summary, scope, CAPPED_STEPS, ", capped: {0.value:.0f} steps")
    title = "Completion steps (dashed: failures count as the limit)"
    drawn = chart("Success", success, rounds, Axis("success (%)", (0, 100)))
    return parts.charts([drawn, chart(title, steps, rounds, Axis("control steps"))])


def episode_tiles(summary: Row) -> list[Tile]:
    """The four numbers of a run: base, final, and the paired gains over base and control."""
    success, method = find_all(summary["estimates"], how=SUCCESS, scope=OVERALL), summary["method"]
    last = max((one.round for one in find_all(success, model=method)), default=0)
    final = find_all(success, model=method, round=last)
    rates = {"Base policy": find(success, model=BASE), label(method or "", last): find(final, over=None)}
    gains = {"Gain over the base policy": find(final, over=BASE)}
    if summary["control"]:
        gains[f"Gain over {label(summary['control'])}"] = find(final, over=summary["control"])
    shown = [
        tile(title, one, f"{one.successes} of {one.n} episodes, 95 % interval", percent)
        for title, one in rates.items()
        if one
    ]
    paired = "points, paired 95 % interval"
    return shown + [tile(title, one, paired) for title, one in gains.items() if one and one.refused is None]


def _pairwise(summary: Row) -> Markup:
    """Final rounds, every method against every other; only with at least three methods."""
    methods = list(method_colours(summary))[:-1]
    if len(methods) < 3:
        return Markup("")
    success, rows = find_all(summary["estimates"], how=SUCCESS, scope=OVERALL), []
    for method in methods:
        last = max(one.round for one in find_all(success, model=method))
        found = [find(success, model=method, round=last, over=other) for other in methods]
        rows.append([label(method, last), *found])
    count = len(methods) * (len(methods) - 1) // 2
    return ACTIONS.pairwise(["", *map(label, methods)], rows, count)


def _benchmark(summary: Row) -> Markup:
    """The table of the papers, where it has more than one cell."""
    tables = summary["benchmark"]
    if not tables or not has_several_cells(tables[0]):
        return Markup("")
    head, rows = table_text([(label(row["method"], row["round"]), row) for row in tables])
    return parts.table(head, rows, f"Success (%) by task and task config, {episodes_text(tables[0])}", "numbers")


def results(summary: Row) -> Markup:
    """Tables and charts of success and steps: overall, and for each task and variant where there are several."""
    scopes = _scopes(summary)[1:]
    if not scopes:
        return parts.missing("results", "Success and completion steps", "No evaluation is in this run folder.")
    several = len(scopes) > 1
    return ACTIONS.results(
        table=score_table(summary, OVERALL, "All tasks" if several else scopes[0]),
        charts=_charts(summary, OVERALL) + _experience(summary),
        benchmark=_benchmark(summary),
        scopes=[(scope, score_table(summary, scope), _charts(summary, scope)) for scope in scopes if several],
        pairwise=_pairwise(summary),
        overlap=summary["seed_overlap"],
        split=str(summary["evaluation_seeds"] or "unnamed").replace("_", " "),
        pairs=sum(row.get("pairs") or 0 for row in summary["collection"]),
        methods="; ".join(f"{k}: {v}" for k, v in EPISODE_METHODS.items()),
    )


def _experience(summary: Row) -> Markup:
    """Success over environment steps, and what else learning took, where methods explore."""
    rows = summary["experience"]
    if not rows:
        return Markup("")
    means = find_all(summary["estimates"], how=SUCCESS, scope=OVERALL, over=None)
    base, css = [(0.0, one) for one in find_all(means, model=BASE)], method_colours(summary)
    lines, cells = [], []
    for method in _methods(summary):
        own = [(row, find(means, model=method, round=row["round"])) for row in rows if row["method"] == method]
        points = [(row["environment_steps"] / 1000, one) for row, one in own if one is not None]
        labels = [f"{label(one.model, one.round)}: {one.successes} of {one.n}" for _, one in base + points]
        lines.append(Series.through(label(method), base + points, css[method], 100, labels=labels, bare=len(base)))
        for row, one in own:
            took = [row["environment_steps"], row["corrections"], f"{row['seconds']:.0f}"]
            cells.append([label(method, row["round"]), *took, "" if one is None else percent(one.value)])
    x = Axis("environment steps (thousands)")
    drawn = chart("Success over environment steps", lines, x, Axis("success (%)", (0, 100)))
    head = ["After", "Environment steps", "Corrections", "Seconds of collecting and learning", "Success"]
    caption = "What learning took, summed over rounds; steps of corrections included, of evaluations not"
    return parts.charts([drawn]) + parts.table(head, cells, caption, "numbers")


def _scopes(summary: Row) -> list[str]:
    """Overall, then tasks and variants."""
    return list(dict.fromkeys(one.scope for one in find_all(summary["estimates"], how=SUCCESS)))


def episode_lines(summary: Row) -> list[str]:
    """Tables of all scopes of a run on episodes."""
    scopes = _scopes(summary)
    shown = scopes if len(scopes) > 2 else scopes[:1]
    return [f"{scope}\n{score_lines(summary, scope)}" for scope in shown] + benchmark_lines(summary["benchmark"])


def outcome(episode: EpisodeResult) -> tuple[bool, str, int]:
    """How an episode ended, sortable: success first, then by failure and the sub-goals reached."""
    if episode.success:
        return False, "success", 0
    return True, episode.failure or "timeout", episode.stage


def failure_modes(run: LoadedRun) -> Markup:
    """How episodes ended: one row a failure and stage reached, one column a policy."""
    if not run.evaluations:
        return Markup("")
    counts = [Counter(outcome(e) for e in evaluation.episodes) for evaluation in run.evaluations]
    rows = []
    for key in sorted(set().union(*counts)):
        failed, name, stage = key
        text = f"{name.replace('_', ' ')}, {stage} sub-goal{'s' * (stage != 1)} reached" if failed else "success"
        cells = []
        for count, evaluation in zip(counts, run.evaluations, strict=True):
            share = count[key] / len(evaluation.episodes)
            heat = parts.heat(count[key] or "", share, "bad" if failed else "good")
            cells.append(Cell(heat, "heatcell"))
        rows.append([text, *cells])
    head = ["Outcome", *(label(e.method, e.round) for e in run.evaluations)]
    return macros("actions").failures(head, rows)


VIDEO_BUDGET_BYTES = 4_500_000
"""Both sides of all embedded videos; the rest stays in the run folder."""


def _policy(run: LoadedRun, node: str | None) -> str:
    """Readable name of the policy that a node trained: method and round, in a study also the training seed."""
    _, seed, own = study_place(str(node)) if run.config.get("study") else ("", 0, str(node))
    method, number = parse_node(own)
    return label(BASE if method == "sft" else method, number) + (f", training seed {seed}" if seed else "")


def filmed(run: LoadedRun, budget: int = VIDEO_BUDGET_BYTES) -> list[tuple[str, Markup]]:
    """Name of the folder and both films of each recorded episode whose files are there, within the budget of bytes; of
    the others a problem of the run."""
    shown, used = [], 0
    for folder, film in ((folder, film) for folder, index in run.videos for film in index):
        files = [folder / film.before, folder / film.after]
        if not all(file.is_file() and file.parent == folder for file in files):
            run.problems.append(f"a video listed in {folder.name} is missing")
            continue
        used += sum(file.stat().st_size for file in files)
        if used > budget:
            break
        policies = (film.before_node, film.before_failure), (film.after_node, film.after_failure)
        texts = [f"{_policy(run, node)}: {(end or 'success').replace('_', ' ')}" for node, end in policies]
        kind = "image/webp" if film.pictures_hz is None else "video/webm"
        sides = [(data_uri(file.read_bytes(), kind), text) for file, text in zip(files, texts, strict=True)]
        heading = f"{film.task}, {film.variant}, seed {film.seed}"
        shown.append((folder.name, ACTIONS.video(heading, sides, film.pictures_hz)))
    return shown


def videos(run: LoadedRun) -> Markup:
    """Episodes that went from failure to success."""
    count = sum(len(index) for _, index in run.videos)
    if not count:
        return parts.missing("videos", "From failure to success", "No videos are in this run folder.")
    return ACTIONS.videos([film for _, film in filmed(run)], count)
