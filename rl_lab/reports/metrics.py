"""`metrics.jsonl`: read it after any interruption, and say in one line what every name means.

One object a line: node, method, round, step (optimiser step within the node), time (seconds since the run started),
then values. A line with `alarm` carries a text instead.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rl_lab.common.files import Record, read_json_lines

HEADER = ("node", "method", "round", "replicate", "step", "time", "alarm")
"""Keys that place a record, with the training seed that a study's nodes name; everything else in it is a value."""
DEFINITIONS = {
    "loss": "The scalar that the optimiser minimises.",
    "lr": "Learning rate of this step.",
    "grad_norm": "Norm of the gradient over all trained parameters, before clipping.",
    "flow/loss": "Flow-matching loss: squared error of the velocity, weighted, mean over chunk and action dims.",
    "flow/probe": "Auxiliary loss of the vision warm-up: squared error of simulator truth read off image tokens.",
    "flow/code": "Auxiliary loss: -log of the probability of the next token's visual codes, mean over both.",
    "flow/global": "Auxiliary loss: minus the cosine of an image's mapped mean token and its global feature.",
    "vision/code": "The same of a text's pictures: -log of the probability of the next token's visual codes.",
    "vision/global": "The same of a text's pictures: minus the cosine of the mapped mean token and the global feature.",
    "loss/preference": "Mean of -log s(r_w - r_l), s = sigmoid; log 2 = 0.693 when the policy equals its reference.",
    "loss/proximal": "Mean of -1/2 [log s(r) + log s(-r)] summed over r_w and r_l; 2 log 2 = 1.386 at the reference.",
    "loss/sft": "Flow-matching loss on winner chunks, before its weight lambda_sft.",
    "flow/winner": "Flow-matching loss l of the policy on winner chunks of real pairs.",
    "flow/winner_reference": "The frozen reference on the same winner chunks, noise and times.",
    "flow/loser": "Flow-matching loss l of the policy on loser chunks of real pairs.",
    "flow/loser_reference": "The frozen reference on the same loser chunks, noise and times.",
    "flow/identical": "Flow-matching loss l of the policy where winner and loser are the same chunk.",
    "flow/identical_reference": "The frozen reference on the same identical chunks, noise and times.",
    "reward/winner": "Implicit reward r_w = beta/2 (l_reference - l_policy) of winners; above 0 = fits better.",
    "reward/loser": "Implicit reward r_l = beta/2 (l_reference - l_policy) of losers; below 0 = pushed away.",
    "reward/identical": "The same reward where winner and loser are one chunk; below 0 = forgetting.",
    "reward/margin": "r_w - r_l, mean over real pairs.",
    "reward/accuracy": "Share of real pairs with r_w > r_l. Near 1 for collapsed policies too: no sign of success.",
    "reward_model/accuracy": "Share of the step's pictures that are scored on the right side of a half.",
    "reward_model/prediction_over_still": "Error of the predicted latents over that of 'nothing changes'; 1 = no use.",
    "reward_model/variance_loss": "How far the latents' spread lies below 1, mean over dimensions; 1 = collapsed.",
    "capped/winner": "Share of real pairs whose winner loss the whole objective no longer pulls down.",
    "capped/identical": "Share of identical pairs whose loss the whole objective no longer pulls down.",
    "outcome/accuracy": "Share of the step's answers that are scored on the right side of 0; of pairs, those in order.",
    "outcome/correct": "Share of the step's answers that are correct.",
    "outcome/margin": "Score of the better answer minus that of the worse, mean over the step's pairs.",
    "text/cross_entropy": "Mean of -log pi over the answers' tokens.",
    "validation/loss": "Mean of -log pi over the answers' tokens of rows that are never learned.",
    "validation/accuracy": "Share of the answers' tokens of these rows that are the likeliest, given those before.",
    "text/tokens": "Tokens of answers that the step learned from.",
    "text/tokens_total": "Tokens of answers that were learned from so far, again in each pass.",
    "distill/divergence": "Divergence between teacher and student as configured, mean over the answers' tokens, nats.",
    "distill/agreement": "Share of the answers' tokens at which teacher and student find the same token most likely.",
    "distill/covered": "The teacher's probability of the tokens compared one by one; below 1 only with top_k.",
    "entropy": "Entropy of the distribution that a token was drawn from, mean over the answers' tokens, nats.",
    "kl": "Estimate of KL(policy || reference): pi_ref/pi - log(pi_ref/pi) - 1, mean over the answers' tokens.",
    "groups/with_signal": "Share of the groups in which some answer has an advantage other than 0.",
    "clip/low": "Share of tokens with a negative advantage whose ratio is below 1 - epsilon: they have no gradient.",
    "clip/high": "Share of tokens with a positive advantage whose ratio is above 1 + epsilon_high: no gradient.",
    "clip/region": "Sum of both shares.",
    "mismatch/mean": "|log pi_trainer - log pi_engine|, mean over the answers' tokens.",
    "mismatch/max": "The largest of these differences.",
    "mismatch/newest": "Their mean over answers of the newest weight version in the batch: least staleness in it.",
    "importance/zero": "Share of these weights that are 0: masked for their mismatch.",
    "judge/agreement": "Share of held-out answers that judge and verifier put on the same side of one half.",
    "judge/kappa": "Cohen's kappa of the two: agreement beyond chance.",
    "judge/items": "Answers that both scored.",
    "weight_version": "Version of the policy weights that collected the rows of the batch, mean.",
    "reward/mean": "Weighted sum of the parts of the reward, mean over the sampled answers that could be scored.",
    "reward_masked": "Share of sampled answers left out because a reward call failed.",
    "pool/unseen": "Items that were never sampled.",
    "pool/hard": "Items whose pass rate most probably lies below the frontier band.",
    "pool/frontier": "Items whose pass rate most probably lies inside the frontier band, with a spread to learn from.",
    "pool/easy": "Items whose pass rate most probably lies above the frontier band.",
    "pool/flat": "Items inside the frontier band whose answers all get nearly the same reward.",
    "rollouts/groups": "Groups of answers sampled in the step, with refills.",
    "rollouts/refilled": "Groups sampled in place of groups without signal.",
    "rollouts/signal": "Share of the sampled groups whose rewards differ.",
    "rollouts/tokens": "Completion tokens generated in the step.",
    "rollouts/tokens_total": "Completion tokens generated for training so far.",
    "rollouts/length": "Tokens of an answer, mean.",
    "rollouts/spread": "Standard deviation of the rewards in a group, mean over groups; GRPO learns from nothing else.",
    "rollouts/truncated": "Share of answers cut off at the length limit.",
    "rollouts/staleness": "Weight versions by which the weights that sampled an answer are behind, mean.",
    "traces/partial": "Share of the step's questions that some, but not all, of their traces answer correctly.",
    "traces/candidates": "Traces that were sampled for fine-tuning.",
    "traces/kept": "Traces that were kept.",
    "traces/items": "Questions that were asked.",
    "traces/items_kept": "Questions of which a trace was kept.",
    "seconds/generate": "Seconds in which the engines generated.",
    "seconds/score": "Seconds in which rewards were computed.",
    "seconds/teacher": "Seconds in which the teacher's engines read answers.",
    "seconds/learn": "Seconds of the optimiser step.",
    "seconds/cpu": "CPU seconds of the learner's process in the step, all its threads; waiting costs none.",
    "seconds/publish": "Seconds in which new weights were handed to the engines.",
    "seconds/step": "Seconds of the whole step; phases that overlap add up to more.",
    "idle/rollout": "Share of the step in which the engines waited.",
    "idle/learner": "Share of the step in which the learner waited.",
    "idle/engines": "Share of the turn in which an engine had nothing to do.",
    "idle/simulators": "Share of the turn in which a simulation worker had nothing to do.",
    "seconds/turn": "Seconds of a turn of joint training: waiting for its batch, learning, publishing.",
    "seconds/examine": "Seconds of a short examination of both skills.",
    "rpro/round": "Round of pairs that the turn learned from.",
    "rpro/steps": "Steps of RPRO that are done.",
    "held_out/reward": "Mean reward of one sampled answer to each held-out item.",
}
"""NAME -> formula or meaning in one line."""
FAMILIES = {
    "gradient/": "How hard this term pulls: norm of its derivative by the flow losses of the batch.",
    "gradient_share/": "That norm over the sum of the norms of all terms.",
    "ratio/": "pi / pi_old of tokens (or of answers, with importance_sampling_level sequence).",
    "importance/": "Weight pi_trainer / pi_engine on a token's (or an answer's) loss, within its bounds.",
    "rows/": "Share of the batch drawn from this buffer.",
    "reward/disagreement/": "Standard deviation over the members of this reward model, mean over the sampled answers.",
    "reward/": "Mean of this part of the reward over the sampled answers to which it applies.",
    "source/": "Mean of -log pi over the answers' tokens that the step has of this source.",
    "validation/": "The same of the rows of one source.",
    "outcome/test_": "Of the finished reward model on answers about unseen scenes; see its card.",
    "reward_category/": "Mean reward of the answers to items of this category.",
    "reward_type/": "Mean reward of the answers that are scored this way.",
    "reward_failures/": "Calls of this part of the reward that failed for this reason, and masked their answers.",
    "kept_type/": "Share of the traces of questions with this reward type that is kept.",
    "why_dropped/": "Traces that were dropped for this rule, the first that they break; see docs/rft.md.",
    "pool_flow/": "Items that the step moved from one band to the other.",
    "held_out/pass@": "Chance that one of this many answers to a held-out item passes.",
    "held_out_category/": "Mean reward of one sampled answer to each held-out item of this category.",
    "cosine/": "Cosine of GRPO's and RPRO's gradient on what both train of this group, each on its newest batch.",
    "drift/": "||w - w_0|| / ||w_0|| over all weights of this group, w_0 the weights at the start.",
    "skill/": "Mean score of a short examination: reward on development questions, success on development episodes.",
    "turns/": "Turns of this objective that are done.",
}
"""First part of families of names (`gradient_share/preference`, `rows/demonstrations`, ...) -> meaning."""


def define(name: str) -> str | None:
    """The one-line definition of a metric, None for one that nobody defined; the objective may stand before it."""
    for known in (name, name.removeprefix("grpo/").removeprefix("rpro/")):
        if known in DEFINITIONS:
            return DEFINITIONS[known]
        found = next((text for family, text in FAMILIES.items() if known.startswith(family)), None)
        if found is not None:
            return found
    return None


def read_metrics(path: Path) -> list[Record]:
    """Records of `metrics.jsonl`, one for each step of a node; alarms stay records of their own; none without a file.

    Of values logged twice (killed, resumed and repeated) the last one counts.
    """
    latest: dict[Any, Record] = {}
    for index, record in enumerate(read_json_lines(path, missing_ok=True)):
        place = (record.get("node"), record.get("step"), record.get("alarm"))
        key = place if record.get("step") is not None else index
        latest[key] = {**latest.get(key, {}), **record}
    return list(latest.values())


def curve(records: list[Record], node: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric of one node, sorted by step."""
    points = [
        (float(r["step"]), float(r[name]))
        for r in records
        if r.get("node") == node and "alarm" not in r and r.get("step") is not None and is_finite(r.get(name))
    ]
    points.sort()
    return [x for x, _ in points], [y for _, y in points]


def is_finite(value: Any) -> bool:
    """Whether the value is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
