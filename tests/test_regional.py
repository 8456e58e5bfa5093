"""wrap(regional=True): part by part, with one program for blocks that are alike, and the whole model's feedback."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import WrapError
from lfpgraph.wrapping.calls import wrapping_of
from lfpgraph.wrapping.regional import blocks_of

from .support.blocks import Block, Deep
from .support.helpers import assert_same, gradients, lfp


def _deep(**options: Any) -> Deep:
    torch.manual_seed(0)
    return Deep(**options).double().eval()


X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _assert_same(found: dict[str, Tensor], whole: dict[str, Tensor], rest: float = 5e-5) -> None:
    """In the blocks to the last digits; before them a scale that ends a layer in another part shows by its epsilon."""
    blocks = {name for name in whole if re.search(r"blocks\.|\.h\.|\.layer\.", name)}
    assert_same({k: found[k] for k in blocks}, {k: whole[k] for k in blocks}, 1e-9)
    assert_same(found, whole, rest)


def test_parts_are_found() -> None:
    """Blocks that are alike, kind by kind; what is beside them as large as possible; a list is no part."""
    model = lfpgraph.wrap(_deep(), regional=True)
    assert blocks_of(model) == [[f"blocks.{i}" for i in range(4)]]
    assert wrapping_of(model).parts == ["embed", *(f"blocks.{i}" for i in range(4)), "head"]
    assert lfpgraph.is_wrapped(model) and lfpgraph.is_wrapped(model.blocks[0])
    lfpgraph.unwrap(model)
    assert not any(lfpgraph.is_wrapped(m) for m in model.modules()) and "forward" not in model.__dict__


@pytest.mark.parametrize("options", [{}, {"memory": "min"}], ids=["fast", "min"])
def test_equals_the_whole(options: dict[str, Any]) -> None:
    """Every parameter's feedback, that of one between the parts too, is what wrapping the whole model gives."""
    model = _deep()
    whole = lfp(model, X, composite="lfp")
    lfpgraph.wrap(model, regional=True, **options)
    _assert_same(gradients(model, X), whole)


def test_gradient_composite_is_autograd() -> None:
    """With the gradient composite the parts give autograd's gradient, to the last digits."""
    model = _deep()
    expected = gradients(model, X)
    lfpgraph.wrap(model, "gradient", regional=True)
    assert_same(gradients(model, X), expected, 1e-10)


class Between(nn.Module):
    """Blocks with code between them that has rules of its own: an activation, a product, attention over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.blocks[0](self.first(x)))
        x = self.blocks[1](x) * torch.sigmoid(x)
        x = torch.softmax(x @ x.T, -1) @ self.blocks[2](x)
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize("composite", ["lfp-epsilon", "lfp", "epsilon-plus"])
def test_code_between_the_parts_goes_by_its_rules(composite: str) -> None:
    torch.manual_seed(0)
    model = Between().double()
    whole = lfp(model, X, composite=composite)
    lfpgraph.wrap(model, composite, regional=True)
    assert_same(gradients(model, X), whole, 1e-4)


def test_traces_do_not_grow_with_depth() -> None:
    """Two blocks or nine: one trace for the embedding, one for the blocks, one for the head; new sizes trace nothing."""
    for depth in (2, 9):
        model = lfpgraph.wrap(_deep(depth=depth), regional=True)
        for batch in (X, X[:2], X[:1]):
            model(batch).sum().backward()
        assert lfpgraph.explain_wrap(model).traces == 3


def test_blocks_that_only_look_alike() -> None:
    """A number that differs from block to block is not seen from outside: such blocks get programs of their own."""
    model = _deep(scales=(1.0, 0.5, 1.0, 2.0))
    whole = lfp(model, X, composite="lfp")
    lfpgraph.wrap(model, regional=True)
    _assert_same(gradients(model, X), whole)
    assert lfpgraph.explain_wrap(model).traces == 5


def test_dropout_in_blocks_shares_programs() -> None:
    """In training the blocks are compared from one random state, so that dropout does not make them differ."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Sequential(nn.Linear(8, 8))) for _ in range(4)]
    model = lfpgraph.wrap(nn.Sequential(*blocks).train(), regional=True)
    model(torch.randn(3, 8)).sum().backward()
    assert lfpgraph.explain_wrap(model).traces == 2  # the first block's input asks for no signal


def test_overrides_name_the_whole_path() -> None:
    """A composite's patterns are paths in the model, not in the part; blocks treated otherwise share nothing."""
    rules = lfpgraph.get_composite("lfp-epsilon").override("blocks.2.*", epsilon=0.5)
    model = _deep()
    whole = lfp(model, X, composite=rules)
    lfpgraph.wrap(model, rules, regional=True)
    _assert_same(gradients(model, X), whole)
    assert lfpgraph.explain_wrap(model).traces == 4


def test_checkpointed_blocks() -> None:
    """Blocks computed again by torch.utils.checkpoint give the same feedback, with a frozen block among them."""
    model, twin = _deep(), _deep(checkpointed=True)
    for m in (model, twin):
        m.blocks[1].requires_grad_(False)
        lfpgraph.wrap(m, regional=True)
    assert_same(gradients(twin, X), gradients(model, X), 1e-12)


def test_compiled_parts() -> None:
    """compile=True compiles one block for all."""
    model, twin = _deep(), _deep()
    lfpgraph.wrap(model, regional=True)
    lfpgraph.wrap(twin, regional=True, compile=True)
    assert_same(gradients(twin, X), gradients(model, X), 1e-10)
    assert lfpgraph.explain_wrap(twin).traces == 3


def test_outputs_changed_in_place_between_parts() -> None:
    """An in-place relu behind a part, as in ResNets, changes what the part has returned, not what it keeps."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.first(x).relu_())
            x += 1.0
            out: Tensor = self.last(x)
            return out

    torch.manual_seed(0)
    model = Net().double()
    plain = gradients(model, X)
    lfpgraph.wrap(model, "gradient", regional=True)
    assert_same(gradients(model, X), plain, 1e-10)
    lfpgraph.wrap(lfpgraph.unwrap(model), regional=True)
    assert all(bool(g.isfinite().all()) for g in gradients(model, X).values())


def test_named_blocks_and_copies() -> None:
    """Blocks can be named; a copy of a wrapped model traces for itself and gives the same."""
    model = lfpgraph.wrap(_deep(), regional=["blocks.0", "blocks.1"])
    twin = copy.deepcopy(model)
    assert_same(gradients(twin, X), gradients(model, X), 1e-12)


def test_refusals() -> None:
    """No blocks, an unknown name, a part wrapped before, and an object with a state passed to a block."""
    with pytest.raises(WrapError, match="no two blocks alike"):
        lfpgraph.wrap(nn.Linear(2, 2), regional=True)
    with pytest.raises(WrapError, match="no module named 'layers.0'"):
        lfpgraph.wrap(_deep(), regional=["layers.0"])
    model = _deep()
    lfpgraph.wrap(model.head)
    with pytest.raises(WrapError, match="head is wrapped already"):
        lfpgraph.wrap(model, regional=True)

    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0)
    gpt2 = lfpgraph.wrap(GPT2LMHeadModel(config), regional=True)
    with pytest.raises(WrapError, match="use_cache=False"):
        gpt2(input_ids=torch.ones(1, 4, dtype=torch.long))


class Placed(nn.Module):
    """A table of positions that is only added, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.deep = nn.Embedding(7, 5), nn.Embedding(3, 5), Deep()

    def forward(self, ids: Tensor) -> Tensor:
        return self.deep((self.words(ids) + self.places(torch.arange(3))).mean(1))


def test_a_table_that_is_added_takes_the_plain_signal() -> None:
    """What it is used for is seen by the whole, not by the part."""
    torch.manual_seed(0)
    model, ids = Placed().double().eval(), torch.randint(7, (4, 3))
    whole = lfp(model, ids, composite="lfp")
    lfpgraph.wrap(model, regional=True)
    _assert_same(gradients(model, ids), whole)


@pytest.mark.slow
def test_transformers_models() -> None:
    """GPT-2 and BERT in parts: the blocks' feedback equals the whole model's, and autograd's under the gradient composite."""
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=50, use_cache=False, bos_token_id=0, eos_token_id=0)
    bert = BertConfig(num_hidden_layers=3, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    for model in (GPT2LMHeadModel(gpt2).double().eval(), BertForSequenceClassification(bert).double().eval()):
        batch = {"input_ids": torch.randint(0, 50, (2, 9))}
        plain, whole = gradients(model, **batch), lfp(model, **batch, composite="lfp")
        lfpgraph.wrap(model, regional=True)
        found = gradients(model, **batch)
        _assert_same(found, whole)
        lfpgraph.wrap(lfpgraph.unwrap(model), "gradient", regional=True)
        assert_same(gradients(model, **batch), plain, 1e-9)


def test_an_object_that_the_model_may_change_is_never_traced() -> None:
    """A key-value cache, say: each call writes what it has made into the one it is given."""

    class Memory:
        pass

    class Remembers(nn.Linear):
        def forward(self, x: Tensor, memory: Any) -> Tensor:
            memory.kept = super().forward(x)
            return memory.kept.relu()

    model = lfpgraph.wrap(Remembers(3, 3))
    for _ in range(3):
        memory = Memory()
        out = model(torch.ones(2, 3), memory)
        out.sum().backward()
        assert type(memory.kept) is Tensor and torch.equal(memory.kept.relu(), out)  # type: ignore[attr-defined]
    assert "Memory" in lfpgraph.explain_wrap(model).why


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_compiled_already(whole: bool) -> None:
    """What torch.compile was called on before the wrap runs as it was written."""
    plain = nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 3))).double()
    expected = gradients(lfpgraph.wrap(copy.deepcopy(plain), engine="live"), X)
    model = (
        torch.compile(plain, backend="eager")
        if whole
        else nn.Sequential(plain[0], torch.compile(plain[1], backend="eager"))
    )
    lfpgraph.wrap(model, engine="live")
    for _ in range(2):
        found = gradients(model, X)
        assert_same({name.replace("_orig_mod.", ""): g for name, g in found.items()}, expected, 1e-12)
