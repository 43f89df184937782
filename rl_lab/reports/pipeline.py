"""A pipeline's chain of models: where each came from, what it cost, how it did on held-out questions, what gates chose.

Everything is read from the run folder; `provenance` is what `provenance.json` holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl_lab.reading import read_object
from rl_lab.reports.estimates import REWARD, Estimate, difference_row
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, reward
from rl_lab.reports.run import BASE, LoadedRun

MAKERS = ("cold_start", "teacher", "grpo", "rft", "distill", "imitate")
"""Kinds of stages that make a model."""
CONTROLS = ("teacher", "imitate")
"""Models beside the chain."""
STANDINGS = {"above": "better", "below": "worse", "open": "no difference shown"}
PLACES = ("checkpoints", "grpo")


def is_pipeline(run: LoadedRun) -> bool:
    """Whether the run made one chain of models."""
    return any(stage.get("kind") in ("traces", "rft", "gate", "distill", "imitate", "teacher") for stage in run.stages)


class Chain:
    """The nodes of a pipeline by name, and which model each holds."""

    def __init__(self, run: LoadedRun) -> None:
        self.run = run
        self.nodes: dict[str, Row] = {stage["name"]: stage for stage in run.stages}

    def folder(self, node: str) -> Path | None:
        """Where a node's checkpoint is shown."""
        return next((path for place in PLACES if (path := self.run.path / place / node).is_dir()), None)

    def read(self, node: str, name: str) -> Row:
        """A JSON file of a node's checkpoint; empty without it."""
        folder = self.folder(node)
        path = folder / name if folder is not None else None
        try:
            return read_object(path) if path is not None and path.is_file() else {}
        except ValueError as error:
            self.run.problems.append(f"{node}: {name} cannot be read: {error}")
            return {}

    def inputs(self, node: str | None) -> dict[str, str]:
        """Role -> node."""
        return self.nodes.get(node or "", {}).get("inputs") or {}

    def model_of(self, node: str | None) -> str:
        """Name of the model whose checkpoint a node holds; gates and joins hold one that another node made."""
        if node is None or node not in self.nodes:
            return BASE
        kind, inputs = self.nodes[node]["kind"], self.inputs(node)
        if kind == "gate":
            return self.model_of(inputs.get("policy_after" if self.decision(node).get("passed") else "policy_before"))
        if kind == "join":
            ran = self.nodes.get(inputs["failed"], {}).get("status") == "done"
            return self.model_of(inputs["failed" if ran else "passed"])
        return str(self.nodes[node].get("method") or BASE)

    def decision(self, gate: str) -> Row:
        """What a gate found; empty if it did not run."""
        return self.read(gate, "gate.json") if self.nodes[gate].get("status") == "done" else {}

    def makers(self) -> list[Row]:
        """The nodes that make a model, in order."""
        return [node for node in self.run.stages if node.get("kind") in MAKERS]


def sampled_tokens(run: LoadedRun, nodes: list[str]) -> int:
    """Completion tokens that engines wrote for these nodes' training."""
    return int(sum(line.get("rollouts/tokens") or 0 for line in run.metrics if line.get("node") in nodes))


def read_tokens(run: LoadedRun, node: str) -> int:
    """Tokens that a node imitated, where it counts them."""
    return int(max((line.get("text/tokens_total") or 0 for line in run.metrics if line.get("node") == node), default=0))


def provenance(run: LoadedRun) -> list[Row]:
    """Every model in order: the node that made it, from what, and what that took."""
    chain = Chain(run)
    return [_provenance(chain, node) for node in chain.makers()]


def _provenance(chain: Chain, node: Row) -> Row:
    name, inputs = node["name"], chain.inputs(node["name"])
    own = [name, *([inputs["traces"]] if "traces" in inputs else [])]
    info = chain.read(name, "lab.json") if node.get("status") == "done" else {}
    policy = inputs.get("policy")
    traces = inputs.get("traces")
    return {
        "model": str(node.get("method") or BASE),
        "made_by": node["kind"],
        "node": name,
        "hash": node.get("hash"),
        "status": node.get("status"),
        "reused": node.get("reused"),
        "parents": {role: {"node": parent, "hash": chain.nodes[parent].get("hash")} for role, parent in inputs.items()},
        "from_model": None if node["kind"] in ("cold_start", "teacher") else chain.model_of(policy),
        "traces_of": None if traces is None else chain.model_of(chain.inputs(traces).get("policy")),
        "taught_by": chain.model_of(inputs["teacher"]) if "teacher" in inputs else None,
        "weight_version": info.get("weight_version"),
        "steps": info.get("steps"),
        "tokens_sampled": sampled_tokens(chain.run, own),
        "tokens_imitated": read_tokens(chain.run, name),
        "seconds": sum(chain.nodes[part].get("seconds") or 0 for part in own),
    }


def pipeline_rows(run: LoadedRun, table: Sequence[Estimate]) -> list[Row]:
    """The same with held-out rewards, paired differences to the base and to the model before, and the gate's decision.

    The model before is the one that the gate holds it against, else the one whose answers or weights it was made from.
    """
    chain = Chain(run)
    rewards = find_all(table, how=REWARD, scope=OVERALL)
    rows = []
    for row in provenance(run):
        gate = next((n for n in run.stages if n["kind"] == "gate" and n.get("method") == row["model"]), None)
        decision = chain.decision(gate["name"]) if gate is not None else {}
        before = row["traces_of"] if row["made_by"] == "rft" else row["from_model"]
        if gate is not None and chain.inputs(gate["name"]):
            before = chain.model_of(chain.inputs(gate["name"]).get("policy_before"))
        own = find_all(rewards, model=row["model"])
        measured = {
            "beside": row["model"] in CONTROLS,
            "held_out": find(own, over=None),
            "before": before,
            "over_base": find(own, over=BASE),
            "over_before": find(own, over=before) if before else None,
            "gate": decision or None,
            "gate_status": gate and gate.get("status"),
            "goes_on": chain.model_of(gate["name"]) if decision and gate else None,
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
    for node in run.stages:
        if node["kind"] == "gate":
            decision = chain.decision(node["name"])
            if decision and not decision["passed"] and decision["otherwise"] == "stop":
                return str(node["name"])
    return None


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
