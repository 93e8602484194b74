"""What a preset would train, against Table 2."""

from airnet_cli.config.presets import load_preset
from airnet_cli.workflows.dry_run import dry_run


def test_dry_run_counts_are_those_of_table_2() -> None:
    """42.7 M parameters for AIR-Net and 23.5 M for the baseline, without classifiers."""
    air = dry_run(load_preset("market1501"))
    base = dry_run(load_preset("market1501", ["model.variant=baseline"]))
    assert round(air.parameters_without_classifiers / 1e6, 1) == 42.7
    assert round(base.parameters_without_classifiers / 1e6, 1) == 23.5
    assert (air.embedding_size, air.heads) == (6144, ("A1", "A2", "I"))
    assert air.parameters_with_classifiers == air.parameters_without_classifiers + 751 * 6144


def test_dry_run_counts_the_identities_that_are_trained_on() -> None:
    """As many as `training.train_ids` says, also for data that nobody knows; nobody who is held
    out.
    """
    for name in ("market1501", "own"):
        few = dry_run(load_preset("market1501", ["training.train_ids=300", f"data.name={name}"]))
        assert few.parameters_with_classifiers == few.parameters_without_classifiers + 300 * 6144
    held_out = dry_run(load_preset("market1501", ["training.val_ids=51", "evaluation.every=10"]))
    assert held_out.parameters_with_classifiers == few.parameters_without_classifiers + 700 * 6144
    assert dry_run(load_preset("market1501", ["data.name=own"])).parameters_with_classifiers is None
