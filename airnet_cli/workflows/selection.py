"""What is scored while a run goes on, and the epoch whose weights it ends with.

`last` ends with the last epoch's weights. `val` and `test` end with those of the epoch that has the
best mAP on held-out training people or on the test split; of equal epochs the earlier one stays.
The best weights so far travel in the training state, so a resumed run chooses the same epoch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import Best, write_checkpoint
from airnet_cli.core.data.manifest import Manifest
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.progress import Progress
from airnet_cli.workflows.build import Validation
from airnet_cli.workflows.evaluate import EvaluateOptions, Evaluation, score_network
from airnet_cli.workflows.runs import CHECKPOINT, Model


@dataclass(frozen=True)
class EpochScores:
    """The scores after an epoch; at least one of the two."""

    validation: Evaluation | None
    """On held-out training people, where there are any."""
    test: Evaluation | None
    """On query and gallery; not looked at before the end where held-out people choose the epoch."""

    def to_dict(self) -> dict[str, Any]:
        """What the epoch's line in log.jsonl has of it (docs/formats.md)."""
        named = {"validation": self.validation, "scores": self.test}
        return {key: each.to_dict() for key, each in named.items() if each is not None}


@dataclass(kw_only=True)
class Selection:
    """Scores the network of a run, remembers the best epoch, writes the checkpoint."""

    run: Path
    preset: Preset
    network: AirNet
    """What is scored and saved."""
    identities: tuple[int, ...]
    manifest: Manifest
    validation: Validation | None
    device: torch.device
    best: Best | None
    """So far; of a resumed run, from its training state."""
    progress: Progress

    @property
    def chooses(self) -> bool:
        """Whether another epoch than the last one may win."""
        return self.preset.evaluation.select != "last"

    def is_due(self, epoch: int) -> bool:
        """Whether the network is scored after so many finished epochs."""
        every = self.preset.evaluation.every
        last = self.preset.training.epochs
        return epoch == last or bool(epoch and every and epoch % every == 0)

    def score(self, epoch: int) -> EpochScores:
        """Score the network as it is after `epoch`; write its checkpoint unless a better one is
        there.
        """
        validation = test = None
        # While epochs are chosen from, the checkpoint may be another epoch's: no fingerprint.
        model = None if self.chooses else self._model
        training = self._summary(epoch)
        if not self.chooses:
            self._write(training)
        if self.validation is not None:
            validation = self._score(
                self.validation.manifest,
                None,
                training,
                camera_filter=self.validation.camera_filter,
            )
        if self.preset.evaluation.select != "val":
            test = self._score_test(model, training)
        judge = {"last": None, "val": validation, "test": test}[self.preset.evaluation.select]
        if judge is not None and (self.best is None or judge.whole.mAP > self.best.mAP):
            weights = {k: t.cpu().clone() for k, t in self.network.state_dict().items()}
            self.best = Best(epoch, judge.whole.mAP, weights)
            self._write(self._summary_of_best(self.best))
        return EpochScores(validation, test)

    def choose(self) -> Evaluation:
        """After the last epoch: the best one's weights into network and checkpoint; its scores on
        query and gallery.
        """
        assert self.best is not None  # the last epoch is always scored
        self.network.load_state_dict(self.best.weights)
        training = self._summary_of_best(self.best)
        self._write(training)
        return self._score_test(self._model, training)

    def explain(self) -> str:
        """Which epoch was chosen and by what, in words."""
        assert self.best is not None
        by = "the test split itself: the scores are optimistic"
        if self.preset.evaluation.select == "val":
            by = f"{self.preset.training.val_ids} held-out identities"
        epochs = self.preset.training.epochs
        return f"weights of epoch {self.best.epoch} of {epochs}, the best by mAP on {by}"

    @property
    def _model(self) -> Model:
        return Model(self.run / CHECKPOINT, self.run, was_chosen=False)

    def _score_test(self, model: Model | None, training: dict[str, Any]) -> Evaluation:
        camera_filter = self.preset.evaluation.camera_filter
        return self._score(self.manifest, model, training, camera_filter=camera_filter)

    def _score(
        self,
        manifest: Manifest,
        model: Model | None,
        training: dict[str, Any],
        *,
        camera_filter: bool,
    ) -> Evaluation:
        # In fp32, as `airnet evaluate` scores.
        options = EvaluateOptions(workers=self.preset.training.workers, camera_filter=camera_filter)
        return score_network(
            self.network,
            self.preset,
            manifest,
            options,
            device=self.device,
            model=model,
            training=training,
            progress=self.progress,
        )

    def _write(self, training: dict[str, Any]) -> None:
        write_checkpoint(
            self.run / CHECKPOINT,
            self.network,
            preset=self.preset.model_dump(mode="json"),
            height_px=self.preset.data.height_px,
            width_px=self.preset.data.width_px,
            identities=self.identities,
            training=training,
            normalize_heads=self.preset.evaluation.normalize_heads,
        )

    def _summary_of_best(self, best: Best) -> dict[str, Any]:
        chosen = {"selection": self.preset.evaluation.select, "selection_mAP": best.mAP}
        return self._summary(best.epoch) | chosen

    def _summary(self, epoch: int) -> dict[str, Any]:
        return {
            "data": self.preset.data.name,
            "finished_epochs": epoch,
            "epochs": self.preset.training.epochs,
            "seed": self.preset.training.seed,
            "precision": self.preset.training.precision,
            "selection": "last",
        }
