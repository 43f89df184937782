"""A run of a tracking service, one class for each service; accelerate's classes know how numbers are sent.

Files of Weights & Biases and TensorBoard lie in the run folder. Of trackio and MLflow they lie where their own settings
say (TRACKIO_DIR or MLFLOW_TRACKING_URI), so that their dashboards show all runs together.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import av
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from rl_lab.graph.run_folder import Line

PROJECT = "rl-lab"
"""Name of the project (in MLflow the experiment), where the environment variables of the service give no other."""


class ServiceRun:
    """A run of a service that has begun."""

    def __init__(self, folder: Path, mode: str, settings: Line) -> None:
        """In the run `folder`; `mode` is that of Weights & Biases; `settings` are name, job_type, tags and config."""
        PartialState()  # accelerate's classes ask it whether they are the main process
        self._folder, self._mode = folder, mode
        self._service = self._make(**settings)
        self._begin()

    def _make(self, name: str, job_type: str, tags: list[str], config: Line) -> GeneralTracker:
        """The service's class of accelerate."""
        raise NotImplementedError

    def _begin(self) -> None:
        self._service.start()

    @property
    def _tracker(self) -> Any:
        """The service's own object."""
        return self._service.tracker

    def log(self, values: Line, step: int) -> None:
        """Numbers, and texts such as alarms, of one step."""
        self._service.log(values, step=step)

    def summarise(self, values: Line) -> None:
        """Numbers and texts that belong to no step."""
        self.log({key: value for key, value in values.items() if value is not None}, 0)

    def text(self, name: str, text: str) -> None:
        """A text of several lines."""
        self.log({name: text}, 0)

    def page(self, path: Path) -> None:
        """A self-contained HTML file."""
        raise NotImplementedError

    def film(self, name: str, path: Path) -> None:
        """A film of an episode."""
        raise NotImplementedError

    def finish(self) -> None:
        """All has been sent."""
        self._service.finish()


class WandBRun(ServiceRun):
    """Weights & Biases."""

    def _make(self, name: str, job_type: str, tags: list[str], config: Line) -> GeneralTracker:
        import wandb

        files = str(self._folder / "wandb")
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ.setdefault(variable, files)
        os.environ.setdefault("WANDB_SILENT", "true")
        # On a full disk each line of wandb's own log would print a traceback.
        logging.raiseExceptions = False
        return WandBTracker(
            os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            job_type=job_type,
            tags=tags,
            config=config,
            group=self._folder.name,
            dir=str(self._folder),
            mode=self._mode,
            reinit="create_new",
            settings=wandb.Settings(console="off", disable_git=True, x_disable_meta=True, init_timeout=60),
        )

    def _begin(self) -> None:
        super()._begin()
        self._tracker.define_metric("*", step_metric="step")

    def log(self, values: Line, step: int) -> None:
        """W&B's own step may not go back, so the step is a number like others."""
        self._service.log(values | {"step": step})

    def summarise(self, values: Line) -> None:
        """As the summary of the run."""
        self._tracker.summary.update(values)

    def text(self, name: str, text: str) -> None:
        """As part of the summary."""
        self.summarise({name: text})

    def page(self, path: Path) -> None:
        """As a panel."""
        import wandb

        self._tracker.log({path.stem: wandb.Html(str(path), inject=False)})

    def film(self, name: str, path: Path) -> None:
        """As a panel."""
        import wandb

        self._tracker.log({name: wandb.Video(str(path))})


class TensorBoardRun(ServiceRun):
    """TensorBoard, with a folder for every run in `tensorboard/`."""

    def _make(self, name: str, job_type: str, tags: list[str], config: Line) -> GeneralTracker:
        self._config = config
        return TensorBoardTracker(name, str(self._folder / "tensorboard"))

    def _begin(self) -> None:
        super()._begin()
        self.text("config", "    " + json.dumps(self._config, indent=1).replace("\n", "\n    "))

    def page(self, path: Path) -> None:
        """Where it lies: TensorBoard shows no pages."""
        self.text(path.stem, f"`{path}`")

    def film(self, name: str, path: Path) -> None:
        """As an animated picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif, height, width = as_gif(path)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._tracker.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), 0)


class TrackioRun(ServiceRun):
    """trackio, local or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

    def _make(self, name: str, job_type: str, tags: list[str], config: Line) -> GeneralTracker:
        config = config | {"job_type": job_type, "tags": ", ".join(tags)}
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        group = self._folder.name
        return TrackioTracker(project, name=f"{group}/{name}", group=group, config=config, embed=False)

    def _begin(self) -> None:
        # In a context of its own: trackio ends the run that began before it in the same one, and prints how to see it.
        with contextlib.redirect_stdout(io.StringIO()):
            contextvars.Context().run(self._service.start)

    def log(self, values: Line, step: int) -> None:
        """`time` under another name, as trackio has one of its own."""
        super().log({"seconds" if key == "time" else key: value for key, value in values.items()}, step)

    def page(self, path: Path) -> None:
        """As a panel."""
        import trackio

        self._tracker.log({path.stem: trackio.Html(path)})

    def film(self, name: str, path: Path) -> None:
        """As a panel."""
        import trackio

        self._tracker.log({name: trackio.Video(str(path))})

    def finish(self) -> None:
        """Without trackio's lines."""
        with contextlib.redirect_stdout(io.StringIO()):
            super().finish()


class MLflowRun(ServiceRun):
    """MLflow, local or where MLFLOW_TRACKING_URI says; runs are nested, so that several go on at once."""

    def _make(self, name: str, job_type: str, tags: list[str], config: Line) -> GeneralTracker:
        self._config = config
        known = dict(tag.split(":", 1) for tag in tags) | {"group": self._folder.name, "job_type": job_type}
        return MLflowTracker(PROJECT, tags=known, nested_run=True, run_name=name)

    def _begin(self) -> None:
        import mlflow

        super()._begin()
        mlflow.log_dict(self._config, "config.json", run_id=self._id)

    @property
    def _id(self) -> str:
        return self._tracker.info.run_id

    def log(self, values: Line, step: int) -> None:
        """Numbers under names that MLflow takes, without @ and >; texts, which it has none of, as tags."""
        import mlflow

        texts = {key: value for key, value in values.items() if isinstance(value, str)}
        numbers = {re.sub(r"[^\w\-. :/]", "_", key): value for key, value in values.items() if key not in texts}
        self._service.log(numbers, step=step, run_id=self._id)
        for key, value in texts.items():
            mlflow.MlflowClient().set_tag(self._id, key, f"step {step}: {value}" if step else value)

    def page(self, path: Path) -> None:
        """As an artefact."""
        import mlflow

        mlflow.log_artifact(str(path), run_id=self._id)

    def film(self, name: str, path: Path) -> None:
        """As an artefact."""
        import mlflow

        mlflow.log_artifact(str(path), str(Path(name).parent), run_id=self._id)


SERVICES: dict[str, type[ServiceRun]] = {
    "wandb": WandBRun,
    "tensorboard": TensorBoardRun,
    "trackio": TrackioRun,
    "mlflow": MLflowRun,
}


def as_gif(path: Path) -> tuple[bytes, int, int]:
    """A film as an animated picture in its own time, with height and width, for services that show pictures only."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames = [frame.to_image() for frame in film.decode(stream)]
        hz = float(stream.average_rate or stream.guessed_rate or 1)
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / hz), loop=0)
    return target.getvalue(), frames[0].height, frames[0].width
