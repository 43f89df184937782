"""A pipeline's chain of models: where each came from, what it cost, how it did on held-out questions, what gates chose.

Everything is read from the run folder; `provenance` is what `provenance.json` holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.common.reading import read_object
from rl_lab.reports.estimates import REWARD, Estimate, cell, difference_row, text_table
from rl_lab.reports.kinds import ON_LANGUAGE, Reported
from rl_lab.reports.numbers import OVERALL, Row, duration, find, find_all, reward
from rl_lab.reports.pages.charts import bounds_of, interval_bar
from rl_lab.reports.pages.markup import Cell, Markup, Tile, macros, minus, parts, tile
from rl_lab.reports.run import BASE, LoadedRun, StageRow

STANDINGS = {"above": "better", "below": "worse", "open": "no difference shown"}
PLACES = ("checkpoints", "grpo")
"""Folders of a run with the checkpoints of its nodes."""


def is_pipeline(run: LoadedRun) -> bool:
    """Whether the run made one chain of models."""
    return any(_reported(stage.kind).means_chain for stage in run.stages)


class Chain:
    """The nodes of a pipeline by name, and which model each holds."""

    def __init__(self, run: LoadedRun) -> None:
        self.run = run
        self.nodes = {stage.name: stage for stage in run.stages}

    def read(self, node: str, name: str) -> Row:
        """A JSON file of the checkpoint of a node that ran; empty without it."""
        paths = (self.run.path / place / node / name for place in PLACES)
        path = next((path for path in paths if path.is_file()), None)
        try:
            return read_object(path) if path is not None and self.nodes[node].status == "done" else {}
        except ValueError as error:
            self.run.problems.append(f"{node}: {name} cannot be read: {error}")
            return {}

    def inputs(self, node: str | None) -> dict[str, str]:
        """Role -> node."""
        return (self.nodes[node].inputs if node in self.nodes else None) or {}

    def model_of(self, node: str | None) -> str:
        """Name of the model whose checkpoint a node holds; gates and joins hold one that another node made."""
        if node is None or node not in self.nodes:
            return BASE
        kind, inputs = self.nodes[node].kind, self.inputs(node)
        if kind == "gate":
            return self.model_of(inputs.get("policy_after" if self.decision(node).get("passed") else "policy_before"))
        if kind == "join":
            other = self.nodes.get(inputs["failed"])
            return self.model_of(inputs["failed" if other and other.status == "done" else "passed"])
        return self.nodes[node].method or BASE

    def decision(self, gate: str) -> Row:
        """What a gate found; empty if it did not run."""
        return self.read(gate, "gate.json")


def provenance(run: LoadedRun) -> list[Row]:
    """Every model in order: the node that made it, from what, and what that took."""
    chain = Chain(run)
    return [
        _provenance(chain, node) for node in run.stages if node.kind in ON_LANGUAGE and ON_LANGUAGE[node.kind].makes
    ]


def _provenance(chain: Chain, node: StageRow) -> Row:
    inputs, info = chain.inputs(node.name), chain.read(node.name, "lab.json")
    traces = inputs.get("traces")
    own = [node.name, *([traces] if traces else [])]
    lines = [line for line in chain.run.metrics if line.get("node") in own]
    return {
        "model": node.method or BASE,
        "made_by": node.kind,
        "node": node.name,
        "hash": node.hash,
        "status": node.status,
        "reused": node.reused,
        "parents": {role: {"node": parent, "hash": chain.nodes[parent].hash} for role, parent in inputs.items()},
        "from_model": None if _reported(node.kind).is_given else chain.model_of(inputs.get("policy")),
        "traces_of": None if traces is None else chain.model_of(chain.inputs(traces).get("policy")),
        "taught_by": chain.model_of(inputs["teacher"]) if "teacher" in inputs else None,
        "weight_version": info.get("weight_version"),
        "steps": info.get("steps"),
        "tokens_sampled": int(sum(line.get("rollouts/tokens") or 0 for line in lines)),
        "tokens_imitated": int(
            max((line.get("text/tokens_total") or 0 for line in lines if line["node"] == node.name), default=0)
        ),
        "seconds": sum(chain.nodes[part].seconds or 0 for part in own),
    }


def _reported(kind: str | None) -> Reported:
    return ON_LANGUAGE.get(kind or "", Reported())


def pipeline_rows(run: LoadedRun, table: Sequence[Estimate]) -> list[Row]:
    """The same with held-out rewards, paired differences to the base and to the model before, and the gate's decision.

    The model before is the one that the gate holds it against, else the one whose answers or weights it was made from.
    """
    chain, gates = Chain(run), {node.method: node for node in reversed(run.stages) if node.kind == "gate"}
    rewards = find_all(table, how=REWARD, scope=OVERALL)
    rows = []
    for row in provenance(run):
        gate = gates.get(row["model"])
        decision = chain.decision(gate.name) if gate else {}
        before = row["traces_of"] if row["made_by"] == "rft" else row["from_model"]
        if gate and gate.inputs:
            before = chain.model_of(gate.inputs.get("policy_before"))
        own = find_all(rewards, model=row["model"])
        measured = {
            "beside": _reported(row["model"]).is_beside,
            "held_out": find(own, over=None),
            "before": before,
            "over_base": find(own, over=BASE),
            "over_before": find(own, over=before) if before else None,
            "gate": decision or None,
            "gate_status": gate and gate.status,
            "goes_on": chain.model_of(gate.name) if decision and gate else None,
        }
        rows.append(row | measured)
    return rows


def written_rows(rows: list[Row]) -> list[Row]:
    """The same as `summary.json` has it."""
    gains = ("over_base", "over_before")
    return [row | {key: difference_row(row[key]) for key in gains} for row in rows]


def last_model(rows: list[Row]) -> Row | None:
    """The model that the chain ends with: what its last gate let through, or what was made after it."""
    made = [row for row in rows if not row["beside"] and row["status"] == "done"]
    if not made:
        return None
    wanted = made[-1]["goes_on"] or made[-1]["model"]
    return find(made, model=wanted)


def stopped_by(run: LoadedRun) -> str | None:
    """The gate that ended the run early."""
    chain = Chain(run)
    decisions = ((node.name, chain.decision(node.name)) for node in run.stages if node.kind == "gate")
    return next((name for name, it in decisions if it and not it["passed"] and it["otherwise"] == "stop"), None)


def pipeline_verdict(rows: list[Row], stopped: str | None) -> list[str]:
    """What the chain showed, in words."""
    last = last_model(rows)
    sentences = [f"{stopped} stopped the run: the stages behind it were skipped."] if stopped else []
    if last is None or last["held_out"] is None:
        return [*sentences, "The last model of the chain was not examined."]
    mean, gain = last["held_out"], last["over_base"]
    span = f"95 % interval {mean.ends()}, {mean.n} questions"
    text = f"The chain ends with {last['model']}: held-out reward {reward(mean.value)} ({span})"
    if gain is not None:
        ends = gain.ends("{:+.3f}".format)
        text += f", {gain.value:+.3f} over the base (paired 95 % interval {ends}; {STANDINGS[gain.standing]})"
    sentences.append(text + ".")
    gates = [row for row in rows if row["gate"]]
    passed = [row["model"] for row in gates if row["gate"]["passed"]]
    if gates:
        listed = f": {', '.join(passed)}" if passed else ""
        sentences.append(f"{len(passed)} of {len(gates)} models passed their gate, on development questions{listed}.")
    return [" ".join(sentences)]


def pipeline_lines(summary: Row) -> list[str]:
    """The chain of models: what each was made from, what it gained over the one before, what its gate said."""
    rows = []
    for row in summary["pipeline"]:
        gate = "" if row["gate"] is None else "passed" if row["gate"]["passed"] else f"{row['goes_on']} goes on"
        gate = row["status"] if row["status"] != "done" else gate
        gain = f"{row['before']}: {cell(row['over_before'], reward)}" if row["over_before"] else ""
        tokens, seconds = row["tokens_sampled"] or row["tokens_imitated"], f"{row['seconds']:.0f} s"
        cells = [row["model"], row["from_model"], row["held_out"], gain]
        rows.append([*cells, f"{tokens:,}" if tokens else "", seconds, gate])
    head = ["model", "from", "held-out reward", "over the one before", "tokens", "time", "gate"]
    return [text_table(head, rows, left=2)]


def _origin(row: Row) -> str:
    """What a model was made from, in words."""
    parts = [f"from {row['from_model']}"] if row["from_model"] else []
    if row["traces_of"] and row["traces_of"] != row["from_model"]:
        parts.append(f"on traces of {row['traces_of']}")
    if row["taught_by"]:
        parts.append(f"towards {row['taught_by']}")
    return ", ".join([_reported(row["made_by"]).makes, *parts])


def _outcome(row: Row) -> tuple[str, str]:
    """What the gate behind a model said in a word or two, and its CSS class."""
    if row["status"] == "skipped" or row["gate_status"] == "skipped":
        return "skipped", "skipped"
    if row["gate"] is None:
        return ("no gate" if row["gate_status"] is None else f"gate {row['gate_status']}"), ""
    if row["gate"]["passed"]:
        return "passed", "passed"
    otherwise = row["gate"]["otherwise"]
    if otherwise == "stop":
        return "not passed: stop", "held"
    goes = row["goes_on"] if otherwise == "previous" else ", ".join(otherwise)
    return f"not passed: {goes}", "held"


def chain_boxes(rows: list[Row]) -> list[Row]:
    """The models in order; controls have a dashed frame, skipped ones are faint."""
    last, boxes = last_model(rows), []
    for row in rows:
        word, css = _outcome(row)
        mean = "not examined" if row["held_out"] is None else reward(row["held_out"].value)
        classes = ("model", "beside" if row["beside"] else "", css, "final" if last and row is last else "")
        said = word if row["gate_status"] or css == "skipped" else _reported(row["made_by"]).makes
        boxes.append({"css": " ".join(filter(None, classes)), "model": row["model"], "reward": mean, "said": said})
    return boxes


def chain_table(rows: list[Row]) -> Markup:
    """One row a model."""
    bounds = bounds_of([row["held_out"] for row in rows if row["held_out"]])
    body = []
    for row in rows:
        mean = row["held_out"]
        bar = interval_bar(mean, bounds) if mean else ""
        name = parts.above(row["model"], _origin(row))
        tokens = row["tokens_sampled"] or row["tokens_imitated"]
        if row["status"] == "skipped":
            body.append([name, Cell("skipped", "left"), "", "", "", "", "", ""])
            continue
        seconds = f"{duration(row['seconds'])}{' (reused)' if row['reused'] else ''}"
        before = parts.above(row["over_before"], row["before"] or "") if row["over_before"] else ""
        cells = [mean, bar, before, row["over_base"]]
        body.append([name, *cells, f"{tokens:,}" if tokens else "", row["steps"], seconds])
    head = ["Model", "Held-out reward", "", "Over the one before", "Over the base", "Tokens", "Steps in all", "Time"]
    return parts.table(head, body, css="numbers stacked")


def gate_table(rows: list[Row]) -> Markup:
    """One row a gate: what it asked, what it found, what it took."""
    body = []
    for row in rows:
        if row["gate_status"] is None:
            continue
        found = row["gate"]
        if found is None:
            body.append([f"{row['model']}", *[""] * 5, Cell(row["gate_status"], "left")])
            continue
        ends = f" {found['low']:+.3f} to {found['high']:+.3f}"
        gain = parts.estimate(minus(f"{found['difference']:+.3f}"), minus(ends))
        asked = minus(f"above {found['rise']:g}")
        word, css = _outcome(row)
        goes = f"{row['goes_on']} goes on" if row["goes_on"] else ""
        taken = parts.above(parts.coloured(word, {"passed": "above", "held": "below"}.get(css, "")), goes)
        cells = [f"{found['before']:.3f}", f"{found['after']:.3f}", gain, asked, f"{100 * found['confidence']:g} %"]
        body.append([f"{row['model']} ({found['n']} questions)", *cells, Cell(taken, "left")])
    if not body:
        return Markup("")
    head = ["Gate behind", "Before", "After", "Paired gain", "Asked", "Interval", Cell("Decision", "left")]
    return parts.table(head, body, "Gates, on development questions", "numbers stacked")


def provenance_table(rows: list[Row]) -> Markup:
    """Where every model is and what it hangs on."""
    body = []
    for row in rows:
        parents = ", ".join(f"{role} {parent['node']}" for role, parent in row["parents"].items())
        how = row["status"] if row["status"] != "done" else "reused" if row["reused"] else "computed"
        version = "" if row["weight_version"] is None else row["weight_version"]
        digest = parts.code(str(row["hash"])[:12])
        body.append([row["model"], row["node"], digest, parents, version, row["steps"], how])
    return parts.table(["Model", "Node", "Hash", "Made from", "Weight version", "Steps", ""], body, css="small")


def pipeline_tiles(rows: list[Row]) -> list[Tile]:
    """Base, the model that the chain ends with, and what it gained."""
    last, shown = last_model(rows), []
    base = next((row for row in rows if row["model"] == BASE), None)
    for title, row in (("Base", base), (f"End of the chain: {last['model']}" if last else "", last)):
        if row is not None and row["held_out"] is not None:
            shown.append(tile(title, row["held_out"], "95 % interval"))
    if last is not None and last["over_base"] is not None:
        shown.append(tile("Over the base", last["over_base"], "paired 95 % interval", "{:+.3f}".format))
    gates = [row["gate"] for row in rows if row["gate"]]
    if gates:
        passed = sum(gate["passed"] for gate in gates)
        shown.append(Tile("Gates passed", f"{passed} of {len(gates)}", "on development questions"))
    return shown


def pipeline_section(rows: list[Row]) -> Markup:
    """The chain, its gates and where every model is from."""
    return macros("language").pipeline(chain_boxes(rows), chain_table(rows), gate_table(rows), provenance_table(rows))
