"""`airnet presets`: a list for people, JSON for programs, one preset as it is."""

import json

from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.config.presets import list_presets, load_preset, preset_text

runner = CliRunner()


def test_list():
    """Each preset has one line with its name and description, whole also in a pipe."""
    result = runner.invoke(app, ["presets"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for name, description in list_presets().items():
        assert f"{name} {description}" in lines


def test_list_as_json():
    """Programs get the same, with the version of its shape."""
    result = runner.invoke(app, ["presets", "--json"])
    assert json.loads(result.stdout) == {
        "version": 1,
        "presets": list_presets(),
    }


def test_print_one_and_start_from_it(tmp_path):
    """What is printed is the file, comments included, and works as a preset of one's own."""
    result = runner.invoke(app, ["presets", "market1501"])
    assert result.stdout == preset_text("market1501")
    mine = tmp_path / "mine.toml"
    mine.write_text(result.stdout)
    assert load_preset(str(mine)) == load_preset("market1501")


def test_an_unknown_name_is_an_error_of_one_line():
    """The nearest name is in the line."""
    result = runner.invoke(app, ["presets", "msmt"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr == 'error: no preset has the name "msmt"; nearest: msmt17 (airnet presets)\n'
    )
