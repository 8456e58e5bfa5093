"""What torch's and transformers' exporters write: loaded, explained, trained and written out once more."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from lfpgraph.onnx import export, load  # noqa: E402

TEXT = ("bert", "gpt2", "llama", "roberta", "distilbert", "albert", "electra", "opt", "qwen3", "gemma2", "mamba",
        "bloom", "gpt_neox", "phi", "falcon", "mpnet", "deberta-v2")  # fmt: skip
IMAGES = ("vit", "deit", "convnext", "resnet", "beit", "dinov2")
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "num_key_value_heads": 1, "head_dim": 8, "embedding_size": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 32,
    "image_size": 32, "patch_size": 8, "num_channels": 3, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
    "hidden_sizes": [8, 16], "embedding_size_of_images": 8, "num_stages": 2, "use_cache": False, "pad_token_id": 1,
}  # fmt: skip


class Reader(nn.Module):
    """Token ids, a table of positions that becomes a constant, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.linear, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(9).expand(1, -1)[:, : ids.shape[1]]
        return self.head(self.linear(self.words(ids) + self.places(places)).relu())


def write(model: nn.Module, args: tuple[Tensor, ...], names: list[str], path: Path, dynamo: bool) -> None:
    with torch.no_grad():
        torch.onnx.export(model.eval(), args, str(path), input_names=names, dynamo=dynamo, verbose=False,
                          **({} if dynamo else {"opset_version": 17}))  # fmt: skip


def run(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(o) for o in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


def check(path: Path, inputs: dict[str, Tensor], again: Path, opset: int | None = None) -> None:
    """`opset`: the file goes out by torch's exporter; None lets it go out as itself."""
    model: Any = load(path)
    inputs = {name: inputs[name] for name in model.input_names}

    def outputs() -> list[Tensor]:
        found = model(**inputs)
        return list(found) if isinstance(found, tuple) else [found]

    for ours, theirs in zip(outputs(), run(path, inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    whole = lfpgraph.conservation(
        model, tuple(inputs.values()), lambda out: _first(out).flatten(1).sum(1).sum().reshape(1)
    )
    assert whole.inputs + sum(whole.leaks.values()) == pytest.approx(whole.explained, rel=1e-3)
    lfpgraph.wrap(model, engine="live")
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=1e-3), []
    for _ in range(5):
        loss = (outputs()[0] - 0.1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    lfpgraph.unwrap(model)
    export(model, again, tuple(inputs.values()), opset=opset)
    for ours, theirs in zip(outputs(), run(again, inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def test_names_that_torchs_exporter_gives_as_well(tmp_path: Path) -> None:
    # The file's output is called like an operation, and a constant in it is, too.
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (2, 7))
    write(Reader(), (ids,), ["ids"], tmp_path / "first.onnx", dynamo=True)
    check(tmp_path / "first.onnx", {"ids": ids}, tmp_path / "again.onnx", opset=20)


class Flat(nn.Module):
    """A transformers model with positional inputs and its first output."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs)))[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tracer
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "script"])
@pytest.mark.parametrize("kind", [*TEXT, *IMAGES])
def test_what_torchs_exporters_write_of_transformers(kind: str, dynamo: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    known = transformers.AutoConfig.for_model(kind)
    names = {**vars(known), **dict.fromkeys(known.attribute_map or ())}
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in SIZES.items() if k in names})
    model = transformers.AutoModel.from_config(config)
    inputs = (
        {"input_ids": torch.randint(2, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
        if kind in TEXT
        else {"pixel_values": torch.randn(2, 3, 32, 32)}
    )
    if kind == "mamba":  # takes no mask
        del inputs["attention_mask"]
    write(Flat(model, list(inputs)), tuple(inputs.values()), list(inputs), tmp_path / "first.onnx", dynamo)
    check(tmp_path / "first.onnx", inputs, tmp_path / "again.onnx", opset=20 if dynamo else None)
