"""What a plan finds under the runs root."""

import pytest

from airnet_cli.config.presets import load_preset
from airnet_cli.errors import UsageError
from airnet_cli.workflows.compare import VARIANTS
from airnet_cli.workflows.plan import plan_variants, read_variants


@pytest.fixture
def plan(tmp_path):
    """Plan two seeds of two variants of the preset `market1501`."""

    def of(*overrides):
        return plan_variants(
            load_preset("market1501", overrides),
            preset_name="market1501",
            variants=("baseline", "airnet"),
            runs=2,
            runs_root=tmp_path / "runs",
        )

    return of


def states(plan):
    return [(each.variant, each.seed, each.state) for each in plan.runs]


def test_an_empty_root(plan, tmp_path):
    """All is missing, each seed a whole comparison; nothing is written."""
    planned = plan()
    assert states(planned) == [
        ("baseline", 1, "missing"),
        ("airnet", 1, "missing"),
        ("baseline", 2, "missing"),
        ("airnet", 2, "missing"),
    ]
    names = [each.run.name.rpartition("-") for each in planned.runs]
    assert [name[0] for name in names] == [
        "market1501-baseline-s1",
        "market1501-airnet-s1",
        "market1501-baseline-s2",
        "market1501-airnet-s2",
    ]
    assert len({name[2] for name in names}) == 1, "the rest of the settings is the same"
    assert not (tmp_path / "runs").exists()


def test_runs_are_found_by_their_preset(plan, write_run):
    """Whatever their names; another setting is another run."""
    finished = write_run("by-hand", "model.variant=baseline", "training.workers=0")
    stopped = write_run("stopped", seed=2, scores=None, epochs=7)
    write_run("longer", "training.epochs=300")
    planned = plan()
    assert states(planned) == [
        ("baseline", 1, "finished"),
        ("airnet", 1, "missing"),
        ("baseline", 2, "missing"),
        ("airnet", 2, "unfinished"),
    ]
    assert (planned.runs[0].run, planned.runs[3].run) == (finished, stopped)
    assert planned.runs[3].finished_epochs == 7
    assert [planned.count(state) for state in ("finished", "unfinished", "missing")] == [1, 1, 2]


def test_of_several_runs_the_one_that_is_furthest(plan, write_run):
    """Finished before unfinished, then the one with the most epochs."""
    write_run("a", seed=2, scores=None, epochs=9)
    write_run("z", seed=2, scores=None, epochs=3)
    assert plan().runs[3].run.name == "a"
    write_run("finished", seed=2, epochs=1)
    assert plan().runs[3].run.name == "finished"


def test_other_settings_have_other_names(plan):
    """Two plans under one root do not mean the same folders."""
    assert not {each.run for each in plan().runs} & {
        each.run for each in plan("training.epochs=9").runs
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", VARIANTS),
        ("airnet", ("airnet",)),
        ("baseline,airnet", ("baseline", "airnet")),
        (" baseline , airnet,baseline ", ("baseline", "airnet")),
    ],
)
def test_names_of_variants(text, expected):
    """In the order given, each once."""
    assert read_variants(text) == expected


@pytest.mark.parametrize("text", ["", "airnet,", "all,airnet", "Airnet"])
def test_what_is_no_variant(text):
    """A typo trains nothing."""
    with pytest.raises(UsageError, match="there is no variant"):
        read_variants(text)
