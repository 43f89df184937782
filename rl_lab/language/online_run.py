"""A run that learns from its own answers: its steps with short examinations and checkpoints; see `online_steps`."""

from __future__ import annotations

from algos.alarms import truncation_alarm
from algos.hacking_alarms import signal_alarm
from rl_lab.language.grpo_exam import HeldOutExam
from rl_lab.language.grpo_state import RunState
from rl_lab.language.item_files import ItemFile
from rl_lab.language.online_steps import OnlineSteps
from rl_lab.language.reward_models import make_rewards
from rl_lab.learning.watch import Watch, nothing_learned
from rl_lab.runner.stage_context import StageContext


class OnlineRun:
    """One run: `run()` brings it from its last checkpoint to its end."""

    def __init__(
        self, context: StageContext, steps: OnlineSteps, state: RunState, examine_every: int, seed: int
    ) -> None:
        """`steps` and their `state` stand at the last checkpoint; examined every so many batches, 0 for never."""
        self.context, self.steps, self.examine_every = context, steps, examine_every
        self.learner, self.state = steps.learner, state
        self.watch, self._nothing_learned = Watch(context), nothing_learned(steps.method.steps)
        truth = context.config.truth
        self.truth = steps.rewards if truth is None else make_rewards(truth)
        self.exam = HeldOutExam(
            ItemFile(context.inputs["questions"] / "held_out.arrow"),
            steps.rollouts.questioner.processor,
            self.truth,
            context.config.examine,
            seed=seed,
            prompts_per_call=4 * context.config.engine.prompts_per_call,
            out=context.out,
            failures=steps.failures,
        )

    def run(self) -> None:
        """Learn from batch after batch; errors as `OnlineSteps.step`."""
        progress, steps = self.state.progress, self.steps.method.steps
        every = self.context.checkpoint_every(steps)
        self.watch.add(*self.context.resume_from(progress.step if progress.step else -1))
        self.state.forget_later()
        try:
            if progress.step == 0:
                self.context.log(0, **self._examine(), weight_version=self.steps.weights.version)
            while progress.batches < steps:
                before = progress.batches
                self._step(before)
                self.context.progress(progress.batches, steps, f"version {self.steps.weights.version}")
                if progress.batches > before and progress.batches % every == 0:
                    self.state.save(self.steps.pool, self.learner.save, self.steps.older_weights())
            self.watch.look(progress.step, signal_alarm)
            self.learner.finish(self.context.out)
            self.steps.pool.seal()
        finally:
            self.truth.close()
            self.steps.close()

    def _step(self, batches: int) -> None:
        """One selection; a short examination if it was for learning and one is due."""
        line = self.steps.step()
        if line is None:
            return
        progress, every = self.state.progress, self.examine_every
        if progress.batches > batches and every and progress.batches % every == 0:
            line |= self._examine()
        self.context.log(progress.step, **line)
        self.watch.add(line)
        self.watch.look(progress.step, truncation_alarm, self._nothing_learned)
        self.steps.check_mismatch(line)

    def _examine(self) -> dict[str, float]:
        steps = self.steps
        return self.exam.examine(steps.engines, steps.weights, self.state.progress, self.context.check_stop)
