# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The command line around the commands: options, help and errors."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from anomalib_ddpm_st.cli import DdpmStCLI, main
from anomalib_ddpm_st.cli.main import COMMANDS
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig


def parsed(*arguments: str) -> dict[str, Any]:
    """Arguments that a command would be called with."""
    command = DdpmStCLI(arguments, run=False)
    return command.config_init[command.subcommand].as_dict()


def test_help_lists_own_and_anomalib_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        DdpmStCLI(["--help"])
    output = capsys.readouterr().out
    for command in (*COMMANDS, "train", "benchmark"):
        assert command in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture) -> None:
    """Also those of the nested settings, with the defaults of the command and no others."""
    with pytest.raises(SystemExit):
        DdpmStCLI([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (COMMANDS[command].__doc__ or "").split("\n")[0] in text
    options = re.findall(r" (--[a-z_.]+) (?:[A-Z_]+|\[ITEM,...\]|\{[a-z_,]+\}) (\(type|.)", text)
    names = {name for name, _ in options}
    expected = {
        "size": {"--images", "--data", "--smallest_defect", "--pixel_size", "--max_cost", "--max_minutes"},
        "threshold": {"--model", "--false_alarm_rate", "--output"},
    }
    assert expected.get(command, {"--output", "--diffusion.training_steps", "--diffusion.block_out_channels"}) <= names
    assert not [name for name, explanation in options if explanation == "(type"]
    if command == "synthesize":
        assert {"--bank.size", "--bank.delta", "--defects.source", "--defects.p_local"} <= names
        assert "default: diffusion)" in text
    assert "Defaults to" not in text
    assert "``" not in text


def test_nested_settings_become_dataclasses() -> None:
    arguments = parsed(
        "synthesize", "--output=pairs", "--images=good", "--bank.delta", "[0.5, 0.9]", "--diffusion.training_steps=7"
    )
    assert arguments["bank"] == BankConfig(delta=(0.5, 0.9))
    assert arguments["diffusion"] == DiffusionConfig(training_steps=7)
    assert arguments["defects"] == DefectConfig(source="diffusion"), "not a mixture, to show what the DDPM makes"
    arguments = parsed("synthesize", "--output=pairs", "--images=good", "--defects.p_soft=0")
    assert arguments["defects"] == DefectConfig(source="diffusion", p_soft=0)


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("bank: {size: 5, start_timestep: [100, 200]}\ndefects: {source: mixture}\n")
    arguments = parsed("synthesize", "-c", str(path), "--output=pairs", "--images=good", "--bank.size=6")
    assert arguments["bank"] == BankConfig(size=6, start_timestep=(100, 200))
    assert arguments["defects"] == DefectConfig(source="mixture")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Call the entry point as a shell does."""
    monkeypatch.setattr(sys, "argv", ["anomalib-ddpm-st", *arguments])
    main()


def test_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "only.png").write_bytes(b"no image")
    arguments = ["--images", str(tmp_path), "--output", str(tmp_path / "ddpm")]
    with pytest.raises(SystemExit, match=r"^anomalib-ddpm-st diffusion: .*only.png cannot be read"):
        run_main(monkeypatch, "diffusion", *arguments)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--bank.size=0", "size"),
        ("--bank.delta=[2, 1]", "delta"),
        ("--defects.probability=1.5", "probability"),
        ("--diffusion.training_steps=0", "training_steps"),
    ],
)
def test_value_out_of_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, name: str) -> None:
    arguments = [f"--images={tmp_path}", f"--output={tmp_path / 'pairs'}", option]
    with pytest.raises(SystemExit, match=rf"^anomalib-ddpm-st synthesize: .*{name} must be .*, got .*\.$") as error:
        run_main(monkeypatch, "synthesize", *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--bank.size=many", "bank.size"),
        ("--defects.source=none", "defects.source"),
        ("--bank.sizes=3", "--bank.sizes"),
        ("--strength=[0.3, 2.0]", "--strength"),
    ],
)
def test_unknown_option_or_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, option: str, message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        run_main(monkeypatch, "synthesize", "--images=good", "--output=pairs", option)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
