"""Success and completion steps of every policy, how its episodes ended, and films of those that end differently.

Tables with intervals and paired gains, charts round by round; two policies side by side as animated pictures.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rl_lab.reports.benchmark import episodes_text, has_several_cells, table_text
from rl_lab.reports.estimates import CAPPED_STEPS, STEPS, SUCCESS, Estimate
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, percent
from rl_lab.reports.pages.charts import Axis, Series, chart, colours, interval_bar
from rl_lab.reports.pages.markup import Cell, Markup, macros, parts
from rl_lab.reports.run import BASE, EpisodeResult, LoadedRun, Video, label, parse_node
from rl_lab.stats import EPISODE_METHODS

ACTIONS = macros("actions")


def _rates(summary: Row, scope: str = OVERALL) -> list[Estimate]:
    """Success of every policy."""
    return find_all(summary["estimates"], how=SUCCESS, scope=scope, over=None)


def _methods(summary: Row, scope: str = OVERALL) -> list[str]:
    """Methods with an evaluation, in the order of the stages."""
    return list(dict.fromkeys(one.model for one in _rates(summary, scope) if one.model != BASE))


def method_colours(summary: Row) -> dict[str, str]:
    """Method -> CSS class: the method under test first, its control grey, the rest as they come."""
    return colours(sorted(_methods(summary), key=lambda method: method != summary["method"]), summary["control"])


def score_table(summary: Row, scope: str, caption: str | None = None) -> Markup:
    """One row a policy: n, success with interval, paired differences, completion steps."""
    overs = [BASE, *([summary["control"]] if summary["control"] else [])]
    names = ["Over base", *(f"Over {label(over)}" for over in overs[1:])]
    head = ["Policy", "n", "Success", "", "95 % interval", *names, "Steps, successes", "Steps, capped"]
    table = find_all(summary["estimates"], scope=scope)
    rows = []
    for one in _rates(summary, scope):
        own = find_all(table, model=one.model, round=one.round)
        cells = [label(one.model, one.round), one.n, parts.bold(percent(one.value)), interval_bar(one, (0.0, 1.0))]
        cells += [f"{one.ends()} %", *(find(own, how=SUCCESS, over=over) for over in overs)]
        steps = [find(own, how=how, over=None) for how in (STEPS, CAPPED_STEPS)]
        rows.append([*cells, *("" if mean is None else f"{mean.value:.0f}" for mean in steps)])
    return parts.table(head, rows, caption, "numbers")


def _round_axis(summary: Row, scope: str) -> Axis:
    last = max(one.round for one in _rates(summary, scope))
    ticks = [(0, "base"), *((k, f"round {k}") for k in range(1, last + 1))]
    return Axis("evaluated after", (-0.3, last + 0.3), ticks)


def _lines(summary: Row, scope: str, how: str) -> list[tuple[str, list[Estimate], list[float]]]:
    """The base policy and every method with its means and their places on the round axis; methods start at the base."""
    means = find_all(summary["estimates"], how=how, scope=scope, over=None)
    base = find_all(means, model=BASE)
    methods, found = _methods(summary, scope), []
    for number, method in enumerate(methods):
        own = find_all(means, model=method)
        shift = 0.07 * (number - (len(methods) - 1) / 2)
        found.append((method, base + own, [0.0] * len(base) + [one.round + shift for one in own]))
    return [*found, (BASE, base, [0.0] * len(base))]


def _legend_name(method: str) -> str:
    """The base policy is a point that the axis names."""
    return "" if method == BASE else label(method)


def success_chart(summary: Row, scope: str, title: str) -> Markup:
    """Success before and after each round with Wilson intervals."""
    series = []
    for method, rates, x in _lines(summary, scope, SUCCESS):
        texts = [f"{label(one.model, one.round)}: {one.successes} of {one.n}" for one in rates]
        points, css = list(zip(x, rates, strict=True)), method_colours(summary)[method]
        bare = sum(one.model != method for one in rates)
        series.append(Series.through(_legend_name(method), points, css, 100, labels=texts, bare=bare))
    return chart(title, series, _round_axis(summary, scope), Axis("success (%)", (0, 100)))


def steps_chart(summary: Row, scope: str, title: str) -> Markup:
    """Completion steps before and after each round: over successes, and with failures at the limit (dashed)."""
    series = []
    for name, how in (("successes", STEPS), ("capped", CAPPED_STEPS)):
        for method, means, x in _lines(summary, scope, how):
            texts = [f"{label(one.model, one.round)}, {name}: {one.value:.0f} steps" for one in means]
            bare = sum(one.model != method for one in means)
            css, y = method_colours(summary)[method], [one.value for one in means]
            series.append(Series(_legend_name(method), x, y, css, how == CAPPED_STEPS, labels=texts, bare=bare))
    return chart(title, series, _round_axis(summary, scope), Axis("control steps"))


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


def _charts(summary: Row, scope: str) -> Markup:
    steps = "Completion steps (dashed: failures count as the limit)"
    return parts.charts([success_chart(summary, scope, "Success"), steps_chart(summary, scope, steps)])


def _benchmark(summary: Row) -> Markup:
    """The table of the papers, where it has more than one cell."""
    tables = summary["benchmark"]
    if not tables or not has_several_cells(tables[0]):
        return Markup("")
    head, rows = table_text([(label(row["method"], row["round"]), row) for row in tables])
    return parts.table(head, rows, f"Success (%) by task and task config, {episodes_text(tables[0])}", "numbers")


def results(summary: Row) -> Markup:
    """Tables and charts of success and steps: overall, and for each task and variant where there are several."""
    scopes = list(dict.fromkeys(one.scope for one in find_all(summary["estimates"], how=SUCCESS)))[1:]
    if not scopes:
        return parts.missing("results", "Success and completion steps", "No evaluation is in this run folder.")
    several = len(scopes) > 1
    return ACTIONS.results(
        table=score_table(summary, OVERALL, "All tasks" if several else scopes[0]),
        charts=_charts(summary, OVERALL),
        benchmark=_benchmark(summary),
        scopes=[(scope, score_table(summary, scope), _charts(summary, scope)) for scope in scopes if several],
        pairwise=_pairwise(summary),
        overlap=summary["seed_overlap"],
        split=str(summary["evaluation_seeds"] or "unnamed").replace("_", " "),
        pairs=sum(row.get("pairs") or 0 for row in summary["collection"]),
        methods="; ".join(f"{k}: {v}" for k, v in EPISODE_METHODS.items()),
    )


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

SIDES = ("before", "after")


def _picture(path: Path) -> str:
    return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()


def _policy(run: LoadedRun, node: str) -> str:
    """Readable name of the policy that a node trained: method and round, or variant and training seed."""
    method, number = parse_node(node)
    if run.config.get("sweep"):
        return f"{label(method)}, training seed {number}"
    return label(BASE if method == "sft" else method, number)


def _video(run: LoadedRun, folder: Path, film: Video) -> Markup:
    """One episode under both policies."""
    sides = []
    for side in SIDES:
        end = str(getattr(film, f"{side}_failure") or "success").replace("_", " ")
        text = f"{_policy(run, str(getattr(film, f'{side}_node')))}: {end}"
        sides.append((_picture(folder / getattr(film, side)), text))
    return ACTIONS.video(f"{film.task}, {film.variant}, seed {film.seed}", sides)


def _playable(run: LoadedRun) -> Iterator[tuple[Path, Video]]:
    """Folder and line of every recorded episode whose files are there; of the others a problem of the run."""
    for folder, index in run.videos:
        for film in index:
            files = [folder / film.before, folder / film.after]
            if all(file.is_file() and file.parent == folder for file in files):
                yield folder, film
            else:
                run.problems.append(f"a video listed in {folder.name} is missing")


def filmed(run: LoadedRun, budget: int = VIDEO_BUDGET_BYTES) -> list[tuple[str, Markup]]:
    """Name of the folder and both films of each recorded episode, within the budget of bytes."""
    shown, used = [], 0
    for folder, film in _playable(run):
        used += sum((folder / side).stat().st_size for side in (film.before, film.after))
        if used > budget:
            break
        shown.append((folder.name, _video(run, folder, film)))
    return shown


def videos(run: LoadedRun) -> Markup:
    """Episodes that went from failure to success."""
    count = sum(len(index) for _, index in run.videos)
    if not count:
        return parts.missing("videos", "From failure to success", "No videos are in this run folder.")
    return ACTIONS.videos([film for _, film in filmed(run)], count)
