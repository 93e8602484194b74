"""Training: learns, repeats itself, resumes bit by bit, and stops when the loss is not finite."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from airnet_cli.core import training
from airnet_cli.core.averaging import WeightAverage
from airnet_cli.core.checkpoint import read_training_state, write_training_state
from airnet_cli.core.data.dataset import ImageDataset, TrainingLoader
from airnet_cli.core.data.sampler import IdentitySampler
from airnet_cli.core.data.transforms import Augmentation
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone
from airnet_cli.core.training import Schedule, Trainer
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


def schedule_of(**changes) -> Schedule:
    """Return the paper's schedule but for `changes`."""
    paper = Schedule(
        shape="steps",
        learning_rate=3.5e-4,
        factor=0.1,
        epochs=[40, 70],
        total_epochs=200,
        warmup_epochs=0,
        warmup_start=0.1,
    )
    return replace(paper, **changes)


@pytest.fixture
def build(crops):
    """Return a function that builds a trainer over the drawn crops."""

    def trainer(
        *, seed=0, backbone=None, variant="airnet", learning_rate=1e-3, ema_decay=0.0, **changes
    ):
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
            schedule=schedule_of(learning_rate=learning_rate, factor=0.1, epochs=[2]),
            sampler=sampler,
            loader=TrainingLoader(dataset, sampler, workers=0, pin_memory=False),
            labels=torch.tensor(person_ids),
            augmentation=Augmentation(
                flip_probability=0.5,
                erasing_probability=0.5,
                erasing_area=(0.02, 0.4),
                erasing_aspect=(0.3, 3.33),
                pad_crop_px=0,
            ),
            triplet_margin=0.2,
            label_smoothing=0.0,
            precision="fp32",
            device=CPU,
            seed=seed,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            clip_norm=0.0,
            average=None,
        )
        if ema_decay:
            changes["average"] = WeightAverage(network, decay=ema_decay)
        return replace(built, **changes)

    return trainer


def losses(reports):
    return [(report.loss, report.heads) for report in reports]


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


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


SETTINGS = {
    "paper": {},
    "all": {
        "ema_decay": 0.5,
        "clip_norm": 1.0,
        "schedule": schedule_of(shape="cosine", total_epochs=4, warmup_epochs=1),
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_resumed_run_is_bit_for_bit_the_undisturbed_one(build, tmp_path, settings):
    """Written after some epochs, read into a network of other weights, trained to the end."""
    whole = build(**settings)
    expected = losses(whole.fit(epochs=4))

    finished = 2
    interrupted = build(**settings)
    list(interrupted.fit(epochs=finished))
    path = tmp_path / "state.safetensors"
    average = interrupted.scored_network if "ema_decay" in settings else None
    write_training_state(
        path,
        interrupted.network,
        interrupted.optimizer,
        finished_epochs=finished,
        average=average,
    )

    resumed = build(**settings)
    with torch.no_grad():
        for network in {resumed.network, resumed.scored_network}:
            for parameter in network.parameters():
                parameter.normal_()
    state = read_training_state(
        path,
        resumed.network,
        resumed.optimizer,
        average=None if average is None else resumed.scored_network,
    )
    first_epoch = state.finished_epochs
    assert (first_epoch, state.best) == (finished, None)
    assert losses(resumed.fit(epochs=4, first_epoch=first_epoch)) == expected[finished:]
    assert all(torch.equal(t, weights(whole)[k]) for k, t in weights(resumed).items())
    averages = (t.scored_network.state_dict() for t in (resumed, whole))
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in averages), strict=True))
    state, whole_state = (t.optimizer.state_dict()["state"] for t in (resumed, whole))
    assert state.keys() == whole_state.keys()
    assert all(torch.equal(state[i][k], whole_state[i][k]) for i in state for k in state[i])


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
    trainer.sampler.set_epoch(0)
    batches = len(trainer.sampler)
    line = rf"nan in epoch 1 \(noticed after batch {batches} of {batches}\); .*lower .*than 0\.001"
    with pytest.raises(TrainingError, match=line) as raised:
        list(trainer.fit(epochs=2))
    assert "\n" not in str(raised.value)


def test_loss_that_is_not_finite_is_noticed_in_the_epoch(build, monkeypatch):
    """Each so many batches: a long epoch is not trained to its end for nothing."""
    monkeypatch.setattr(training, "CHECK_EVERY", 2)
    trainer = build()
    with torch.no_grad():
        trainer.network.heads["I"].classifier.weight.fill_(float("nan"))
    told = []
    with pytest.raises(TrainingError, match=r"noticed after batch 2 of \d"):
        list(trainer.fit(epochs=1, progress=lambda _, done, *__: told.append(done)))
    assert told == [1]


@pytest.mark.parametrize("name", ["trunk.0.1.running_var", "heads.A1.norm.weight"])
def test_weights_that_are_not_finite_give_no_report(build, monkeypatch, name):
    """The last step's damage is in no loss yet: the epoch ends in an error that names a tensor, so
    that nobody saves it.
    """
    trainer = build()
    step = Trainer.step

    def break_after(self, *arguments, **named):
        loss = step(self, *arguments, **named)
        trainer.network.state_dict()[name].fill_(float("inf"))
        return loss

    monkeypatch.setattr(Trainer, "step", break_after)
    monkeypatch.setattr(type(trainer.sampler), "__len__", lambda _: 1)
    one = [next(iter(trainer.loader))]
    broken = replace(trainer, loader=one)
    with pytest.raises(TrainingError, match=rf"not finite after epoch 1, {name} among them; start"):
        list(broken.fit(epochs=1))


def test_rate_follows_the_schedule(build):
    """The optimizer runs at the rate that the report names."""
    trainer = build()
    rates = []
    for report in trainer.fit(epochs=4):
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [report.learning_rate]
        rates.append(report.learning_rate)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 3.5e-4), (39, 3.5e-4), (40, 3.5e-5), (69, 3.5e-5), (70, 3.5e-6), (199, 3.5e-6)],
)
def test_schedule_of_the_paper(epoch, rate):
    """3.5e-4, a tenth after 40 finished epochs and again after 70; no warm-up."""
    assert schedule_of().at(epoch) == pytest.approx(rate)


@pytest.mark.parametrize("shape", ["steps", "cosine"])
def test_warmup_is_linear(shape):
    """From its share of the rate in equal steps to the whole; then as without a warm-up."""
    schedule = schedule_of(shape=shape, warmup_epochs=10, warmup_start=0.01, total_epochs=100)
    rates = [schedule.at(epoch) for epoch in range(11)]
    assert rates[0] == pytest.approx(0.01 * 3.5e-4)
    assert rates[10] == pytest.approx(3.5e-4)
    assert np.diff(rates) == pytest.approx(np.full(10, 0.099 * 3.5e-4))
    assert max(schedule.at(epoch) for epoch in range(100)) == rates[10]


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_goes_from_the_rate_to_zero(warmup):
    """Half a cosine over the epochs after the warm-up: whole, half way the half, nearly nothing."""
    schedule = schedule_of(
        shape="cosine", learning_rate=1.0, total_epochs=100 + warmup, warmup_epochs=warmup
    )
    rates = [schedule.at(epoch) for epoch in range(warmup, 100 + warmup)]
    by_hand = [0.5 + 0.5 * math.cos(math.pi * epoch / 100) for epoch in range(100)]
    assert rates == pytest.approx(by_hand)
    assert (rates[0], rates[50]) == (1, pytest.approx(0.5))
    assert 0 < rates[-1] < 1e-3


def a_step(trainer, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, 3, 64, 32), generator=random, dtype=torch.uint8)
    return trainer.step(images, torch.tensor([0, 0, 1, 1]), np.random.default_rng(0))


def gradient_norm(trainer) -> float:
    squares = [p.grad.square().sum() for p in trainer.network.parameters() if p.grad is not None]
    return float(sum(squares)) ** 0.5


def test_clipping_shortens_long_gradients_alone(build):
    """Above the length: same direction, that length; below it and at 0: as it is."""
    plain, short, long = build(), build(clip_norm=1e-3), build(clip_norm=1e6)
    for trainer in (plain, short, long):
        trainer.network.train()
        a_step(trainer)
    norm = gradient_norm(plain)
    assert norm > 1e-2
    assert gradient_norm(long) == norm
    assert gradient_norm(short) == pytest.approx(1e-3, rel=1e-3)
    for expected, found in zip(plain.network.parameters(), short.network.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad * 1e-3 / norm, rtol=1e-3, atol=0)


def test_average_is_scored_and_the_training_does_not_see_it(build):
    """The same losses and weights as without it; the scored network lies behind the weights."""
    plain, averaged = build(), build(ema_decay=0.9)
    assert plain.scored_network is plain.network
    assert losses(plain.fit(epochs=2)) == losses(averaged.fit(epochs=2))
    expected, found = weights(plain), weights(averaged)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    name = "heads.A1.classifier.weight"
    behind, ahead = averaged.scored_network.state_dict()[name].norm(), found[name].norm()
    assert 0 < behind < ahead


def test_loss_scaler_is_resumed(build, tmp_path):
    """fp16's scale, which grows with every good step, goes on where it was; without fp16 the file
    has none.
    """

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)

    whole = build(scaler=scaler())
    expected = losses(whole.fit(epochs=3))
    interrupted = build(scaler=scaler())
    list(interrupted.fit(epochs=1))
    path = tmp_path / "state.safetensors"
    parts = (interrupted.network, interrupted.optimizer)
    write_training_state(path, *parts, finished_epochs=1, scaler=interrupted.scaler)
    resumed = build(scaler=scaler())
    parts = (resumed.network, resumed.optimizer)
    read_training_state(path, *parts, scaler=resumed.scaler)
    assert resumed.scaler.state_dict() == interrupted.scaler.state_dict()
    assert resumed.scaler.get_scale() > 8
    assert losses(resumed.fit(epochs=3, first_epoch=1)) == expected[1:]
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
