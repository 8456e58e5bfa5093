"""Relevance of every token written: equal to step by step, for causal and sequence-to-sequence models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError, InputError


@pytest.fixture(scope="module")
def causal() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=None, pad_token_id=0
    )
    return GPT2LMHeadModel(config).double().eval()


def test_equals_step_by_step(causal: Any) -> None:
    prompt = torch.tensor([[3, 1, 4]])
    call = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    found = lfpgraph.explain_generation(causal, call, against="runner-up", batch=2, generate={"max_new_tokens": 3})
    assert found.tokens.shape == (6,) and found.start == 3 and found.relevance.shape == (3, 6)
    for i in (2,):
        ids = found.tokens[None, : 3 + i]
        logits = causal(ids, use_cache=False).logits[0, -1]
        assert int(logits.argmax()) == int(found.tokens[3 + i]) and int(logits.topk(2).indices[1]) == int(
            found.runner_up[i]
        )
        target = lfpgraph.Contrast((-1, int(found.tokens[3 + i])), (-1, int(found.runner_up[i])))
        step = lfpgraph.attribute(causal, {"input_ids": ids, "use_cache": False}, target)["input_ids"][0]
        torch.testing.assert_close(found.relevance[i, : 3 + i], step)
        assert not found.relevance[i, 3 + i :].any()
        torch.testing.assert_close(found.explained[i], logits.topk(2).values.diff()[0].neg().detach())
    page, line = found.html(lambda i: f"<{i}>"), found.text(lambda i: f"w{i}\x1b[2J")
    assert page.count("<tr>") == 4 and "&lt;3&gt;" in page and "<3>" not in page
    assert "\x1b[2J" not in line and len(line.splitlines()) == 3


def test_source_and_written_tokens() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    model = T5ForConditionalGeneration(config).double().eval()
    prompt = torch.tensor([[3, 1, 4, 1]])
    found = lfpgraph.explain_generation(model, prompt, torch.tensor([5, 9]))
    assert found.tokens.tolist() == [3, 1, 4, 1, 0, 5, 9] and found.start == 5 and found.relevance.shape == (2, 7)
    call = {"input_ids": prompt, "decoder_input_ids": torch.tensor([[0, 5]]), "use_cache": False}
    step = lfpgraph.attribute(model, call, lambda out: out.logits[:, -1, 9])
    torch.testing.assert_close(found.relevance[1, :6], torch.cat([step["input_ids"], step["decoder_input_ids"]], 1)[0])


class Plain(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.zeros(*input_ids.shape, 5)


def test_what_is_refused(causal: Any) -> None:
    prompt = torch.tensor([[3, 1, 4]])
    for args, how, message in (
        ((causal, prompt.expand(2, 3)), {}, "token ids of one prompt"),
        ((causal, {"inputs_embeds": torch.rand(1, 2, 8)}), {}, "token ids of one prompt"),
        ((causal, prompt, torch.tensor([])), {}, "nothing was written"),
        ((causal, "a text"), {}, "token ids of one prompt"),
        ((causal, prompt, torch.tensor([[1, 2], [3, 4]])), {}, r"one text, .* not torch.int64 \[2, 2\]"),
        ((causal, prompt, torch.tensor([1.5])), {}, "one text, .* not torch.float32"),
        ((causal, prompt, "ab"), {}, "one text, .* not str"),
        ((causal, prompt, [1]), {"record": "head"}, "explain_generation has no record; it hands on baseline"),
        ((nn.Embedding(3, 3), prompt, [1]), {}, "itself does not run on the text of 4 tokens"),
        ((causal, prompt, [9999]), {}, "itself does not run .*IndexError"),
        ((None, prompt), {}, "takes an nn.Module, not NoneType"),
        ((causal, prompt), {"against": "second"}, "against='second' is not known"),
        ((causal, prompt), {"batch": 0}, "batch must be a whole number"),
        ((causal, prompt), {"generate": {"max_tokens": 3}}, "model.generate fails: "),
        ((Plain(), prompt), {}, "Plain has no generate.*written="),
    ):
        with pytest.raises((AttributionError, InputError), match=message):
            lfpgraph.explain_generation(*args, **how)
