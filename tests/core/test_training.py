"""Training: learns, repeats itself, resumes bit by bit, and stops when the loss is not finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from airnet_cli.core.checkpoint import read_training_state, write_training_state
from airnet_cli.core.data.dataset import ImageDataset, TrainingLoader
from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone, build_backbone
from airnet_cli.core.training import RATE_FACTOR, Schedule, Trainer
from airnet_cli.errors import TrainingError

CPU = torch.device("cpu")


def small_backbone() -> Backbone:
    """Return two convolutions with norms and one of stage 5: a step takes milliseconds."""

    def block(channels_in, channels, stride):
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    return Backbone(
        trunk=nn.Sequential(block(3, 8, 4), block(8, 16, 4)),
        stage5=block(16, 24, 1),
        channels=24,
        trunk_prefix="",
        stage5_prefix="",
        classifier_prefix="",
    )


@pytest.fixture
def build(crops):
    """Return a function that builds a trainer over the drawn crops."""

    def trainer(*, seed=0, backbone=None, variant="airnet", learning_rate=1e-3, **changes):
        paths, person_ids = crops
        torch.manual_seed(seed)
        network = AirNet(backbone or small_backbone(), variant=variant, identities=6)
        network.to(memory_format=torch.channels_last)
        sampler = IdentitySampler(
            person_ids, identities_per_batch=3, images_per_identity=2, seed=seed
        )
        dataset = ImageDataset(paths, height_px=64, width_px=32)
        built = Trainer(
            network=network,
            optimizer=torch.optim.Adam(
                [parameter for parameter in network.parameters() if parameter.requires_grad],
                lr=learning_rate,
                weight_decay=5e-4,
            ),
            schedule=Schedule(learning_rate=learning_rate, factor=0.1, epochs=[2]),
            sampler=sampler,
            loader=TrainingLoader(dataset, sampler, workers=0, pin_memory=False),
            labels=torch.tensor(person_ids),
            augmentation=Augmentation(
                flip_probability=0.5,
                erasing_probability=0.5,
                erasing_area=(0.02, 0.4),
                erasing_aspect=(0.3, 3.33),
            ),
            triplet_margin=0.2,
            label_smoothing=0.0,
            precision="fp32",
            device=CPU,
            seed=seed,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
        )
        return replace(built, **changes)

    return trainer


def losses(reports):
    return [(report.loss, report.heads) for report in reports]


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def test_training_learns(build):
    """The loss of six people in coloured clothes falls far below that of guessing, log 6."""
    schedule = Schedule(learning_rate=5e-3, factor=1.0, epochs=[])
    reports = list(build(schedule=schedule).fit(epochs=12))
    first, last = reports[0], reports[-1]
    assert first.loss > np.log(6)
    assert last.loss < 0.5 * first.loss
    assert all(head.identity_loss < np.log(6) for head in last.heads)


def test_report_has_every_term_of_every_head(build):
    """Means over the epoch's batches, per head; eq. (7) ties them to the total."""
    told = []
    trainer = build()
    trainer.sampler.set_epoch(0)
    batches = len(trainer.sampler)
    (report,) = trainer.fit(epochs=1, progress=lambda *call: told.append(call))
    assert [head.name for head in report.heads] == ["A1", "A2", "I"]
    identity = np.mean([head.identity_loss for head in report.heads])
    triplet = np.mean([head.triplet_loss for head in report.heads])
    assert report.loss == pytest.approx(identity + triplet, rel=1e-5)
    assert all(0 <= head.active_triplets <= 1 for head in report.heads)
    assert (report.epoch, report.epochs, report.images) == (1, 1, 6 * batches)
    assert report.images_per_second == report.images / report.seconds > 0
    assert told == [("epoch 1/1", done, batches, "batches") for done in range(1, batches + 1)]


def test_same_seed_same_losses(build):
    """Defect 11: another start, with other random numbers drawn in between, the same run."""
    first = build(seed=1)
    expected = losses(first.fit(epochs=3))
    again = build(seed=1)
    torch.rand(17)
    np.random.random(3)
    assert losses(again.fit(epochs=3)) == expected
    assert all(torch.equal(t, weights(first)[k]) for k, t in weights(again).items())
    assert losses(build(seed=2).fit(epochs=3)) != expected


@pytest.mark.parametrize("finished", [1, 2])
def test_resumed_run_is_bit_for_bit_the_undisturbed_one(build, tmp_path, finished):
    """Written after some epochs, read into a network of other weights, trained to the end."""
    whole = build()
    expected = losses(whole.fit(epochs=4))

    interrupted = build()
    list(interrupted.fit(epochs=finished))
    path = tmp_path / "state.safetensors"
    write_training_state(path, interrupted.network, interrupted.optimizer, finished_epochs=finished)

    resumed = build()
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.normal_()
    first_epoch = read_training_state(path, resumed.network, resumed.optimizer)
    assert first_epoch == finished
    assert losses(resumed.fit(epochs=4, first_epoch=first_epoch)) == expected[finished:]
    assert all(torch.equal(t, weights(whole)[k]) for k, t in weights(resumed).items())
    state, whole_state = (t.optimizer.state_dict()["state"] for t in (resumed, whole))
    assert state.keys() == whole_state.keys()
    assert all(torch.equal(state[i][k], whole_state[i][k]) for i in state for k in state[i])


def test_finished_run_has_nothing_to_do(build):
    """From the last epoch on there are no reports and no changes."""
    trainer = build()
    before = weights(trainer)
    assert list(trainer.fit(epochs=3, first_epoch=3)) == []
    assert all(torch.equal(t, before[k]) for k, t in weights(trainer).items())


def test_frozen_shifts_stay_zero(build):
    """BNNeck: after training, each head's norm still has no shift; all else has moved."""
    trainer = build()
    before = weights(trainer)
    list(trainer.fit(epochs=1))
    for name, after in weights(trainer).items():
        if name.endswith("norm.bias") and name.startswith("heads."):
            assert after.abs().max() == 0
        else:
            assert not torch.equal(after, before[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_loss_that_is_not_finite_ends_the_run(build, value):
    """One line with the epoch, the rate and what to do; no report of that epoch."""
    trainer = build()
    with torch.no_grad():
        trainer.network.heads["I"].classifier.weight.fill_(value)
    with pytest.raises(TrainingError, match=r"nan in epoch 1; .*lower .*than 0\.001") as raised:
        list(trainer.fit(epochs=2))
    assert "\n" not in str(raised.value)


def test_rate_follows_the_schedule(build):
    """The optimizer runs at the rate that the report names."""
    trainer = build()
    rates = []
    for report in trainer.fit(epochs=4):
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [report.learning_rate]
        rates.append(report.learning_rate)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_a_group_can_have_a_multiple_of_the_rate(build):
    """The schedule moves all groups; the factor of one stays between it and the others."""
    trainer = build()
    group = trainer.optimizer.param_groups[0]
    own = {"params": group["params"][-1:], RATE_FACTOR: 5.0}
    group["params"] = group["params"][:-1]
    trainer.optimizer.add_param_group(own)
    for report in trainer.fit(epochs=3):
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        assert rates == [report.learning_rate, pytest.approx(5 * report.learning_rate)]


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 3.5e-4), (39, 3.5e-4), (40, 3.5e-5), (69, 3.5e-5), (70, 3.5e-6), (199, 3.5e-6)],
)
def test_schedule_of_the_paper(epoch, rate):
    """3.5e-4, a tenth after 40 finished epochs and again after 70; no warm-up."""
    schedule = Schedule(learning_rate=3.5e-4, factor=0.1, epochs=[40, 70])
    assert schedule.at(epoch) == pytest.approx(rate)


def test_step_in_bfloat16_trains_float32_weights(build):
    """Autocast computes in bfloat16; weights, losses and gradients stay float32 and finite."""
    trainer = build(precision="bf16", backbone=build_backbone("mobilenet_v2"))
    images = torch.randint(0, 256, (4, 3, 64, 32), dtype=torch.uint8)
    loss = trainer.step(images, torch.tensor([0, 0, 1, 1]), np.random.default_rng(0))
    assert loss.total.dtype == torch.float32
    assert torch.isfinite(loss.total)
    for parameter in trainer.network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
