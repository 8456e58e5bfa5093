"""Configurations made to do harm: one line, exit status 1, and neither code from elsewhere nor much time or memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfpgraph.cli.limits import limited
from lfpgraph.errors import TargetError
from lfpgraph.threads.silence import quiet

from .support.helpers import run_cli

pytest.importorskip("transformers")

TINY = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
WRONG: dict[str, Any] = {
    "deep nesting": "[" * 100_000 + "]" * 100_000,
    "a deep part": json.dumps(TINY)[:-1] + ', "x": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
    "no text": b"\xff\xfe\x00",
    "a long type": {"model_type": "x" * 1_000_000},
    "a list as type": {"model_type": ["bert"]},
    "a nested auto_map": {**TINY, "text_config": {"vision": [{"auto_map": {"AutoModel": "x--y.Z"}}]}},
    "a kernel of a hub": {**TINY, "attn_implementation": "kernels-community/flash-attn"},
    "code trusted": {**TINY, "backbone_config": {"trust_remote_code": True}},
    "sizes as text": {**TINY, "hidden_size": "wide"},
    "sizes below zero": {**TINY, "hidden_size": -16},
    "layers as a list": {**TINY, "num_hidden_layers": [1]},
    "absurd labels": {**TINY, "num_labels": 10**9},
    "a number of 5,000 digits": json.dumps(TINY)[:-1] + ', "layers": ' + "9" * 5000 + "}",
    "half a character": '{"model_type": "be\\ud800rt"}',
    "labels as a list": {**TINY, "id2label": ["a", "b"]},
    "a class": {**TINY, "__class__": "evil"},
    "methods": {**TINY, "to_dict": 1, "validate": 0},
    "no heads": {**TINY, "num_attention_heads": 0},
    "a dtype of none": {**TINY, "dtype": "evil"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    given = WRONG[name]
    content = given if isinstance(given, bytes) else (given if isinstance(given, str) else json.dumps(given)).encode()
    (tmp_path / "config.json").write_bytes(content)
    assert run_cli(monkeypatch, "coverage", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("lfpgraph: ") and error.count("\n") == 1 and len(error) < 600, error


def test_folders_that_explain_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no model, code of a hub, and tokenizers of any damage: one line each."""
    import transformers

    with quiet():
        transformers.BertModel(transformers.BertConfig(**TINY, intermediate_size=16)).save_pretrained(tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    for entries, files, word in (
        ({"architectures": ["AutoTokenizer"]}, {}, "none of its models"),
        ({"architectures": [3]}, {}, "holds no model|Field 'architectures'"),
        ({"attn_implementation": "kernels-community/flash-attn"}, {}, "code from a hub"),
        ({"hidden_size": -16}, {}, "negative dimension"),
        ({}, {"tokenizer.json": b"[" * 100_000}, "RecursionError"),
        ({}, {"tokenizer.json": b"{}", "tokenizer_config.json": b"[1]"}, "needs a tokenizer ("),
        ({}, {"vocab.txt": b"\xff\xfe"}, "UTF-8"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**good, **entries}))
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        assert run_cli(monkeypatch, "explain", str(tmp_path), "--input", "a b") == 1
        error = capsys.readouterr().err
        line = error[error.rfind("lfpgraph: ") :]
        assert any(w in line for w in word.split("|")) and line.count("\n") == 1 and len(line) < 600, error
        for name in files:
            (tmp_path / name).unlink()


def test_entries_of_wrong_types_that_nobody_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They do no harm; or transformers refuses them itself, as some of its versions do."""
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "architectures": [1, {}], "attribute_map": "x"}))
    status, told = run_cli(monkeypatch, "coverage", str(tmp_path), "--json"), capsys.readouterr().err
    assert status == 0 or (
        status == 1 and "Validation error" in told and "architectures" in told and told.count("\n") == 1
    )


def test_a_build_has_bounds() -> None:
    with pytest.raises(TargetError, match="takes more than 0 s to build"), limited("it", 0.1):
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: S112 - nothing of the model's own may stop it
                continue
    with pytest.raises(MemoryError), limited("it"):
        bytearray(2**32)
    assert len(bytearray(2**29)) == 2**29
