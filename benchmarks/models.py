"""The models that the benchmarks step, each with a batch of random data, at published sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lfpgraph.models_zoo.cnn import vgg16
from lfpgraph.models_zoo.other_kinds import SpikingCNN, SpikingMLP
from lfpgraph.models_zoo.torch_models import ResNet18
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.surrogates import SURROGATE, SurrogateLIF, SurrogateStep

__all__ = ["DEPTHS", "LARGE", "MODELS", "SERIES", "Case", "build"]


@dataclass
class Case:
    """A model and a batch.

    Attributes:
        model: what is trained, by both sides unless there is a `twin`.
        inputs: keyword arguments of forward, or one tensor.
        labels: of the classes; of each token for language models.
        twin: what backprop trains, where the model itself has no useful gradient.
        half: whether forward runs under autocast to bfloat16.
    """

    model: nn.Module
    inputs: dict[str, Tensor] | Tensor
    labels: Tensor
    twin: nn.Module | None = None
    notes: str = field(default="")
    half: bool = False

    def loss(self, model: Callable[..., Any]) -> Tensor:
        """Cross-entropy of one forward pass."""
        with torch.autocast(self.labels.device.type, torch.bfloat16, enabled=self.half):
            out = model(**self.inputs) if isinstance(self.inputs, dict) else model(self.inputs)
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits.flatten(0, -2), self.labels.flatten())

    def first(self, n: int) -> Case:
        """The same with the first n samples of the batch alone."""
        inputs = self.inputs
        few = {k: v[:n] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:n]
        return replace(self, inputs=few, labels=self.labels[:n])

    def to(self, device: str) -> Case:
        """The same on another device."""
        inputs = self.inputs
        moved = {k: v.to(device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
        twin = None if self.twin is None else self.twin.to(device)
        return Case(self.model.to(device), moved, self.labels.to(device), twin, self.notes, self.half)


def _images(model: nn.Module, n: int, c: int, size: int, classes: int) -> Case:
    return Case(model, torch.randn(n, c, size, size), torch.randint(classes, (n,)))


def _tokens(model: nn.Module, n: int, length: int, vocabulary: int) -> Case:
    ids = torch.randint(vocabulary, (n, length))
    return Case(model, {"input_ids": ids}, ids)


def _mlp(width: int = 1024, batch: int = 256) -> Case:
    model = nn.Sequential(
        nn.Linear(512, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip
    return Case(model, torch.randn(batch, 512), torch.randint(10, (batch,)))


def _small_mlp(inputs: int, width: int) -> Case:
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 10))
    return Case(model, torch.randn(64, inputs), torch.randint(10, (64,)))


def _vgg16_bn() -> Case:
    """torchvision's VGG16-BN: the zoo's VGG16 with a batch norm behind every convolution."""
    plain = vgg16()
    layers: list[nn.Module] = []
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d):
            layers += [layer, nn.BatchNorm2d(layer.out_channels)]
        elif not list(layer.children()):
            layers.append(layer)
    return _images(nn.Sequential(*layers), 4, 3, 224, 1000)


def _resnet50(batch: int = 8, size: int = 128) -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(num_labels=1000)
    return _hf_images(ResNetForImageClassification(config), batch, size)


def _hf_images(model: nn.Module, n: int, size: int) -> Case:
    return Case(model, {"pixel_values": torch.randn(n, 3, size, size)}, torch.randint(model.config.num_labels, (n,)))  # type: ignore[union-attr,arg-type]


def _vit(depth: int = 12, width: int = 384, batch: int = 8) -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64, intermediate_size=4 * width,
        num_labels=1000,
    )  # fmt: skip
    return _hf_images(ViTForImageClassification(config), batch, 224)


def _bert(depth: int = 12, batch: int = 8) -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(num_hidden_layers=depth, num_labels=4))
    case = _tokens(model, batch, 128, 30000)
    return Case(model, case.inputs, torch.randint(4, (batch,)))


def _gpt2(depth: int = 12, batch: int = 4, width: int = 768, length: int = 128) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=depth, n_embd=width, n_head=width // 64, use_cache=False)
    return _tokens(GPT2LMHeadModel(config), batch, length, 50000)


def _llama_1b() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    return _tokens(LlamaForCausalLM(config), 1, 64, 32000)


def _mamba() -> Case:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(num_hidden_layers=4, hidden_size=768, use_cache=False)
    case = _tokens(MambaForCausalLM(config), 2, 32, 50000)
    case.notes = "4 layers of Mamba-130m"
    return case


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], inputs: int, width: int) -> None:
        super().__init__()
        self.rnn, self.head = kind(inputs, width, num_layers=2, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0].mean(1))
        return out


def _recurrent(kind: type[nn.RNNBase], inputs: int = 128, width: int = 256, steps: int = 32) -> Case:
    return Case(_Recurrent(kind, inputs, width), torch.randn(32, steps, inputs), torch.randint(10, (32,)))


def _snn() -> Case:
    model, twin = SpikingMLP(), SpikingMLP()
    twin.load_state_dict(model.state_dict())
    twin.neuron = SurrogateLIF()
    case = Case(model, torch.rand(128, 784), torch.randint(10, (128,)), twin)
    case.notes = SURROGATE
    return case


def _gelu_cnn() -> Case:
    layers: list[nn.Module] = []
    for before, after in ((3, 48), (48, 96), (96, 96), (96, 192)):
        layers += [nn.Conv2d(before, after, 3, 2 if after > before else 1, 1), nn.BatchNorm2d(after), nn.GELU()]
    return _images(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 100)), 16, 3, 96, 100)


def _electra() -> Case:
    from transformers import ElectraConfig, ElectraForSequenceClassification

    case = _tokens(ElectraForSequenceClassification(ElectraConfig(num_hidden_layers=6, num_labels=3)), 6, 96, 30000)
    return Case(case.model, case.inputs, torch.randint(3, (6,)))


def _silu_layers() -> list[nn.Module]:
    sizes = (256, 700, 500, 300)
    hidden = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
    return [*hidden, nn.Linear(300, 20)]


class _Stacked(nn.Module):
    """LSTMs one upon another, of different widths, with dropout and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in ((40, 120), (120, 80), (80, 60)))
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(60, 10)

    def forward(self, x: Tensor) -> Tensor:
        for rnn in self.rnns:
            x = self.dropout(rnn(x)[0])
        out: Tensor = self.head(x[:, -1])
        return out


def _spiking_cnn() -> Case:
    model, twin = SpikingCNN(side=16, width=24), SpikingCNN(side=16, width=24)
    twin.load_state_dict(model.state_dict())
    twin.neuron = SurrogateLIF(threshold=0.25)
    return Case(model, torch.rand(32, 1, 16, 16), torch.randint(10, (32,)), twin, SURROGATE)


def _step_cnn() -> Case:
    """A plain step cuts autograd's graph: nothing before it would learn, and nothing would be kept."""
    case = _digits("step_cnn")
    twin = copy.deepcopy(case.model)
    twin[1] = twin[3] = twin[6] = SurrogateStep()  # type: ignore[index]
    case.twin, case.notes = twin, SURROGATE
    return case


def _digits(name: str) -> Case:
    from lfpgraph.models_zoo import digits

    return _images(getattr(digits, name)(), 64, 1, 8, 10)


MODELS: dict[str, Callable[[], Case]] = {
    "mlp": _mlp,
    "mlp-64": lambda: _small_mlp(64, 64),
    "mlp-784": lambda: _small_mlp(784, 128),
    "vgg16-bn": _vgg16_bn,
    "resnet18": lambda: _images(ResNet18(), 8, 3, 128, 1000),
    "resnet50": _resnet50,
    "vit-s16": _vit,
    "bert-base": _bert,
    "gpt2": _gpt2,
    "llama-1b": _llama_1b,
    "mamba": _mamba,
    "lstm": lambda: _recurrent(nn.LSTM),
    "lstm-96": lambda: _recurrent(nn.LSTM, 96, 96, 40),
    "gru": lambda: _recurrent(nn.GRU),
    "snn": _snn,
    "digits-cnn": lambda: _digits("cnn"),
    "digits-step-cnn": _step_cnn,
    "digits-vit": lambda: _digits("vit"),
}

# Others of the same kinds, on which nothing was tuned.
MODELS |= {
    "held-out: CNN, GELU": _gelu_cnn,
    "held-out: ELECTRA": _electra,
    "held-out: MLP, SiLU": lambda: _images(nn.Sequential(nn.Flatten(), *_silu_layers()), 128, 1, 16, 20),
    "held-out: three LSTMs": lambda: Case(_Stacked(), torch.randn(24, 50, 40), torch.randint(10, (24,))),
    "held-out: spiking CNN": _spiking_cnn,
}

# Batches that fill a GPU.
LARGE: dict[str, Callable[[], Case]] = {
    "resnet50-large": lambda: _resnet50(64, 224),
    "vit-s16-large": lambda: _vit(batch=128),
    "gpt2-large": lambda: _gpt2(batch=16, length=512),
    "bert-large-batch": lambda: _bert(batch=128),
    "resnet50-large-bf16": lambda: replace(LARGE["resnet50-large"](), half=True),
    "vit-s16-large-bf16": lambda: replace(LARGE["vit-s16-large"](), half=True),
    "gpt2-large-bf16": lambda: replace(LARGE["gpt2-large"](), half=True),
}

# How cost grows with batch, depth and width.
SERIES: dict[str, dict[str, Callable[[], Case]]] = {
    "MLP, batch": {str(n): lambda n=n: _mlp(batch=n) for n in (1, 16, 256, 1024)},  # type: ignore[misc]
    "MLP, width": {str(n): lambda n=n: _mlp(width=n) for n in (256, 1024, 4096)},  # type: ignore[misc]
    "ViT, depth": {str(n): lambda n=n: _vit(n, 192, 4) for n in (4, 12, 24)},  # type: ignore[misc]
    "ViT, width": {str(n): lambda n=n: _vit(4, n, 4) for n in (192, 384, 768)},  # type: ignore[misc]
    "ViT, batch": {str(n): lambda n=n: _vit(4, 192, n) for n in (1, 4, 16)},  # type: ignore[misc]
}

# How preparation grows with depth; narrow, since width does not matter to it.
DEPTHS = {"GPT-2, depth": {str(n): lambda n=n: _gpt2(n, 2, 64) for n in (12, 48)}}  # type: ignore[misc]


def build(name: str) -> Case:
    """A case by name, the same one each time; "series/value" for a point of `SERIES`."""
    torch.manual_seed(0)
    series, _, value = name.rpartition("/")
    return (SERIES | DEPTHS)[series][value]() if series else (MODELS | LARGE)[name]()
