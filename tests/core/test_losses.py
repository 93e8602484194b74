"""Losses: golden values and gradients, a slow loop, and eq. (7) by hand as judges."""

import math

import pytest
import torch
from torch import nn

from airnet_cli.core.losses import batch_hard_triplet, compute_loss
from airnet_cli.core.model.airnet import HeadOutput

TRIPLETS = ["pk4x4", "pk16x4_d128", "unbalanced", "with_singleton", "one_identity"]


def slow_triplet(vectors, person_ids, margin):
    """Mean over anchors of max(0, D(hardest positive) + m - D(hardest negative)), D = 1 - cos."""

    def distance(a, b):
        a, b = a.tolist(), b.tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    terms = []
    for anchor, anchor_id in zip(vectors, person_ids, strict=True):
        others = [
            (distance(anchor, other), other_id == anchor_id)
            for other, other_id in zip(vectors, person_ids, strict=True)
        ]
        positive = max(d for d, same in others if same)
        negative = min((d for d, same in others if not same), default=math.inf)
        terms.append(max(0.0, positive + margin - negative))
    return sum(terms) / len(terms), sum(term > 0 for term in terms) / len(terms)


def outputs_of(heads=3, batch=8, channels=6, identities=4, seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random).requires_grad_()

    return [
        HeadOutput(f"H{i}", draw(batch, channels), draw(batch, channels), draw(batch, identities))
        for i in range(heads)
    ]


LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("margin", [0.2, 0.3])
@pytest.mark.parametrize("name", TRIPLETS)
def test_triplet_equals_the_golden(name, margin, golden_block, assert_near):
    """Batch-hard with 1 - cos: value and gradient of `adapted_1minuscos_hard_margin…`."""
    golden = golden_block(f"triplet_{name}")
    vectors = golden["x"].requires_grad_()
    term = batch_hard_triplet(vectors, golden["ids"], margin=margin)
    term.loss.backward()
    key = f"adapted_1minuscos_hard_margin{margin}"
    assert_near(term.loss, golden[key], tolerance=1e-5, floor=1e-2)
    assert_near(vectors.grad, golden[f"grad_{key}"], tolerance=1e-4, floor=1e-4)


def test_distance_is_1_minus_cos_not_2_minus_2_cos(golden_block):
    """The other toolkits' cosine distance is twice as large: with it a margin is half as strong."""
    golden = golden_block("triplet_pk4x4")
    ours = batch_hard_triplet(golden["x"], golden["ids"], margin=0.3).loss
    theirs = golden["fastreid_cosine_hard_margin0.3"]
    assert not torch.isclose(ours, theirs, rtol=1e-2)


@pytest.mark.parametrize("margin", [0.0, 0.2, 2.5])
@pytest.mark.parametrize(
    "person_ids",
    [[1, 1, 2, 2, 3, 3], [5, 5, 5, 5, 9, 9], [1, 2, 2, 2, 7, 7], [1, 2, 3, 4, 5, 6], [4] * 6],
    ids=["pairs", "unbalanced", "singleton", "all-singletons", "one-identity"],
)
def test_triplet_equals_the_slow_loop(person_ids, margin):
    """Loss and share of active anchors, for every kind of batch."""
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(len(set(person_ids))))
    loss, active = slow_triplet(vectors, person_ids, margin)
    term = batch_hard_triplet(vectors, torch.tensor(person_ids), margin=margin)
    assert term.loss.item() == pytest.approx(loss, abs=1e-6)
    if margin:  # at 0 a singleton's own distance, 0 but for rounding, may count as active
        assert term.active.item() == pytest.approx(active)


def test_triplet_knows_these_values():
    """Four unit vectors in a plane, worked out by hand."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    # Neighbours at 1, opposites at 2. Identities (0, 1) and (2, 3): positives 1, negatives 1.
    term = batch_hard_triplet(vectors, torch.tensor([0, 0, 1, 1]), margin=0.2)
    assert term.loss.item() == pytest.approx(0.2)
    assert term.active.item() == 1
    # Opposites share an identity: positives 2, negatives 1.
    term = batch_hard_triplet(vectors, torch.tensor([0, 1, 0, 1]), margin=0.2)
    assert term.loss.item() == pytest.approx(1.2)


def test_triplet_pulls_positives_and_pushes_negatives():
    """The minus of eq. (6)'s reference: a step downhill brings the negative further away."""
    vectors = torch.tensor([[1.0, 0.1], [1.0, 0.3], [1.0, -0.2]], requires_grad=True)
    person_ids = torch.tensor([0, 0, 1])
    batch_hard_triplet(vectors, person_ids, margin=0.2).loss.backward()
    after = nn.functional.normalize(vectors.detach() - 0.1 * vectors.grad, dim=1)
    before = nn.functional.normalize(vectors.detach(), dim=1)
    assert after[0] @ after[1] > before[0] @ before[1]
    assert after[0] @ after[2] < before[0] @ before[2]


def test_triplet_ignores_lengths_and_shows_collapse():
    """Only directions count; where all vectors are one, loss = margin with every anchor active."""
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([0, 0, 1, 1, 2, 2])
    plain = batch_hard_triplet(vectors, ids, margin=0.2).loss
    scaled = batch_hard_triplet(vectors * torch.arange(1, 7)[:, None], ids, margin=0.2).loss
    torch.testing.assert_close(plain, scaled)
    collapsed = batch_hard_triplet(torch.ones(6, 5), ids, margin=0.2)
    assert collapsed.loss.item() == pytest.approx(0.2)
    assert collapsed.active.item() == 1
    apart = batch_hard_triplet(torch.eye(3)[ids], ids, margin=0.2)
    assert (apart.loss.item(), apart.active.item()) == (0, 0)


def test_triplet_without_negatives_is_zero():
    """One identity in the batch: no loss and no gradient, nothing infinite."""
    vectors = torch.randn(4, 3, requires_grad=True)
    term = batch_hard_triplet(vectors, torch.zeros(4, dtype=torch.long), margin=0.2)
    term.loss.backward()
    assert (term.loss.item(), term.active.item()) == (0, 0)
    assert vectors.grad.abs().max() == 0


def test_triplet_is_float32_under_autocast():
    """The matrix of cosines is not rounded to bfloat16."""
    vectors = torch.randn(8, 16, generator=torch.Generator().manual_seed(4))
    plain = batch_hard_triplet(vectors, LABELS, margin=0.2).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = batch_hard_triplet(vectors, LABELS, margin=0.2).loss
    assert torch.equal(plain, low)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_total_is_equation_7_by_hand(heads):
    """Mean over heads of the identity losses + mean over heads of the triplet losses."""
    outputs = outputs_of(heads)
    loss = compute_loss(outputs, LABELS, triplet_margin=0.2, label_smoothing=0.0)
    identity, triplet = [], []
    for output in outputs:
        rows = zip(output.logits.tolist(), LABELS.tolist(), strict=True)
        entropy = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
        identity.append(sum(entropy) / len(entropy))
        triplet.append(slow_triplet(output.pooled, LABELS.tolist(), 0.2))
    for found, by_hand, (hard, active) in zip(loss.heads, identity, triplet, strict=True):
        assert found.identity.item() == pytest.approx(by_hand, rel=1e-5)
        assert found.triplet.item() == pytest.approx(hard, rel=1e-5)
        assert found.active.item() == pytest.approx(active)
    total = sum(identity) / heads + sum(hard for hard, _ in triplet) / heads
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert [head.name for head in loss.heads] == [output.name for output in outputs]


def test_triplet_reads_the_vector_before_batch_norm():
    """Gradients reach `pooled` through the triplet term and never `normalized` by itself."""
    outputs = outputs_of()
    compute_loss(outputs, LABELS, triplet_margin=0.2, label_smoothing=0.0).total.backward()
    for output in outputs:
        assert output.pooled.grad.abs().max() > 0
        assert output.logits.grad.abs().max() > 0
        assert output.normalized.grad is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_torchs(smoothing, golden_block, assert_near):
    """Defect 18: eps / N over all classes; the other form, eps / (N - 1), is another loss."""
    golden = golden_block("label_smooth_ce")
    logits = golden["logits"].requires_grad_()
    vectors = torch.randn(len(logits), 4)
    loss = compute_loss(
        [HeadOutput("A1", vectors, vectors, logits)],
        golden["targets"],
        triplet_margin=0.2,
        label_smoothing=smoothing,
    )
    loss.heads[0].identity.backward()
    key = f"torch_eps{smoothing:g}"
    assert_near(loss.heads[0].identity, golden[key], tolerance=1e-5)
    assert_near(logits.grad, golden[f"grad_{key}"], tolerance=1e-4)
    if smoothing:
        assert not torch.isclose(loss.heads[0].identity, golden[f"fastreid_eps{smoothing:g}"])


def test_network_without_logits_is_a_mistake():
    """Evaluation mode or no classifiers: the message names the head and what to do."""
    vectors = torch.ones(2, 3)
    outputs = [HeadOutput("A2", vectors, vectors, None)]
    with pytest.raises(ValueError, match=r"A2 has no logits; train\(\) a network"):
        compute_loss(outputs, torch.tensor([0, 1]), triplet_margin=0.2, label_smoothing=0)
