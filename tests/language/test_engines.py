"""Engines are set up for the sizes of the model that a stage acts with."""

from contextlib import contextmanager
from types import SimpleNamespace

from rl_lab.config.language import EngineConfig
from rl_lab.rollouts.answering import engines


class RecordingCluster:
    """Lends no engines, and keeps with which options it was asked for some."""

    def __init__(self):
        self.asked = []

    @contextmanager
    def rollout_pool(self, options, warn):
        self.asked.append(options)
        yield


def test_a_model_of_other_sizes_gets_engines_of_its_own(tmp_path):
    cluster, config = RecordingCluster(), SimpleNamespace(engine=EngineConfig(dtype="float32"))
    for name, sizes in (("student", "{1}"), ("trained", "{1}"), ("teacher", "{2}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(sizes)
        context = SimpleNamespace(config=config, inputs={"policy": tmp_path / name}, say=print)
        with engines(cluster, context):
            pass
    student, trained, teacher = cluster.asked
    assert student == trained != teacher
