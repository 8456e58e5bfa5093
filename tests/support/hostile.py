"""Files made to do harm: what they hold would leave a mark (an empty file) if any of it were run."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["configurations", "exported_programs"]


class _Mark:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.constant = nn.Linear(3, 4), torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            total = x.sum()
        return torch.einsum("ij,j->i", self.layer(x), self.constant).view(x.shape[0] * 1), total


def _packed(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(f"model/{name}", data)
    return buffer.getvalue()


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def exported_programs(mark: Path) -> dict[str, bytes]:
    """Archives of exported programs by what is wrong with them; the one named "good" is as torch wrote it."""
    buffer = io.BytesIO()
    sizes = {"x": {0: torch.export.Dim("n", min=2, max=100)}}
    torch.export.save(torch.export.export(_Model(), (torch.randn(5, 3),), dynamic_shapes=sizes), buffer)
    with zipfile.ZipFile(buffer) as archive:
        good = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    found = {"good": _packed(good)}
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    evil = _saved(_Mark(mark))

    def program(name: str, change: Callable[[Any], Any]) -> None:
        document = json.loads(good["models/model.json"])
        change(document)
        found[name] = _packed({**good, "models/model.json": json.dumps(document).encode()})

    def config(name: str, kind: str, change: Callable[[Any], Any], **more: bytes) -> None:
        place = f"data/{kind}/model_{kind}_config.json"
        document = json.loads(good[place])
        change(next(iter(document["config"].values())))
        records = {**good, place: json.dumps(document).encode()}
        found[name] = _packed(records | {f"data/{kind}/{key}": value for key, value in more.items()})

    def graph(document: Any) -> Any:
        return document["graph_module"]["graph"]

    def node(document: Any, operation: str = "linear") -> Any:
        return next(n for n in graph(document)["nodes"] if operation in n["target"])

    config("pickled weight", "weights", lambda e: e.update(use_pickle=True), weight_0=evil)
    config("weight with a true number", "weights", lambda e: e.update(use_pickle=1), weight_0=evil)
    config("pickled constant", "constants", lambda e: e.update(use_pickle=True), tensor_0=evil)
    opaque = pickle.dumps(_Mark(mark))
    config("opaque object", "constants", lambda e: e.update(path_name="opaque_obj_0"), opaque_obj_0=opaque)
    config("custom object", "constants", lambda e: e.update(path_name="custom_obj_0"), custom_obj_0=evil)
    config("weight elsewhere", "weights", lambda e: e.update(path_name="../../../../etc/hostname"))
    huge = {"sizes": [{"as_int": 2**40}], "strides": [{"as_int": 0}]}
    config("huge weight", "weights", lambda e: e["tensor_meta"].update(huge))
    many = [{"as_int": 1}] * 5000
    config("weight of many dimensions", "weights", lambda e: e["tensor_meta"].update(sizes=many, strides=many))
    config("huge empty weight", "weights", lambda e: e["tensor_meta"].update(huge), weight_0=b"")
    found["pickled inputs"] = _packed({**good, "data/sample_inputs/model.pt": evil})
    wide = _saved(((torch.zeros(1).expand(2**40),), {}))
    found["huge inputs"] = _packed({**good, "data/sample_inputs/model.pt": wide})
    found["old weights"] = _packed({**good, "data/weights/model.pt": evil})
    found["old constants"] = _packed({**good, "data/constants/model.pt": evil})
    found["compiled library"] = _packed({**good, "data/aotinductor/model/evil.so": b"\x7fELF"})
    found["compressed"] = _packed({**good, "data/weights/weight_0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    parts = {"version": b"8.1", "serialized_exported_program.json": good["models/model.json"]}
    parts |= {f"serialized_{n}.pt": evil for n in ("state_dict", "constants", "example_inputs")}
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    found["archive of torch 2.7"] = old.getvalue()
    size = {"as_expr": {"expr_str": code, "hint": {"as_int": 5}}}
    program("size that is code", lambda d: graph(d)["tensor_values"]["x"]["sizes"].__setitem__(0, size))
    tower = {"as_expr": {"expr_str": "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "hint": {"as_int": 5}}}
    program("size that never ends", lambda d: graph(d)["tensor_values"]["x"]["sizes"].__setitem__(0, tower))
    program("guard that is code", lambda d: d.update(guards_code=[code]))
    program("call of the shell", lambda d: node(d).update(target="torch.os.system"))
    program("call of torch.load", lambda d: node(d).update(target="torch.load"))
    program("call by another door", lambda d: node(d).update(target="_operator.attrgetter"))
    program("operator as argument", lambda d: node(d)["inputs"][0].update(arg={"as_operator": "torch.os.system"}))
    program("argument of another kind", lambda d: node(d)["inputs"][0].update(arg={"as_ints": [2**63]}))
    program("file read", lambda d: node(d).update(target="torch.ops.aten.from_file.default"))
    program("file written", lambda d: node(d).update(target="torch.ops.aten.save.default"))
    program("library loaded", lambda d: node(d).update(target="torch.ops.load_library"))
    injected = f"a=0):\n    {code}\n    return (0"
    program("name of a node", lambda d: node(d).update(name=injected))
    program("name of an input", lambda d: graph(d)["inputs"][-1]["as_tensor"].update(name=injected))
    program("name of an argument", lambda d: node(d, "higher_order")["inputs"][0].update(name=injected, kind=2))
    part = [i for i in range(3)][1]
    program(
        "name of a part", lambda d: node(d, "higher_order")["inputs"][part]["arg"]["as_graph"].update(name=injected)
    )

    def signature(document: Any) -> Any:
        return document["graph_module"]["module_call_graph"][0]["signature"]

    program("name in the signature", lambda d: signature(d).update(forward_arg_names=[injected]))
    leaf = {"type": None, "context": None, "children_spec": []}
    imported = json.dumps({"__enum__": True, "fqn": "this:d", "name": "a"})
    spec = json.dumps([1, {"type": "builtins.tuple", "context": imported, "children_spec": [leaf, leaf]}])
    program("module imported", lambda d: signature(d).update(out_spec=spec))
    factory = {"default_factory_module": "this", "default_factory_name": "d", "dict_context": ["a", "b"]}
    spec_of = [1, {"type": "collections.defaultdict", "context": factory, "children_spec": [leaf, leaf]}]
    program("factory imported", lambda d: signature(d).update(out_spec=json.dumps(spec_of)))
    deep = b"[" * 100_000 + b"]" * 100_000
    found["deep nesting"] = _packed({**good, "models/model.json": deep})
    found["no program"] = _packed({k: v for k, v in good.items() if k != "models/model.json"})
    found["a list"] = _packed({**good, "models/model.json": b"[1, 2]"})
    found["bytes"] = bytes(range(256)) * 10
    return found


_CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
     "vocab_size": 30, "architectures": ["BertForSequenceClassification"]},
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30, "n_positions": 32},
    {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
     "image_size": 32, "patch_size": 8},
    {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
     "intermediate_size": 16, "vocab_size": 30},
)  # fmt: skip
_MORE = (
    "hidden_act", "initializer_range", "torch_dtype", "dtype", "id2label", "num_labels", "layer_norm_eps", "rope_parameters",
    "quantization_config", "max_position_embeddings", "use_cache", "pad_token_id", "head_dim", "attn_implementation",
    "architectures", "tie_word_embeddings", "num_channels", "problem_type", "pruned_heads", "chunk_size_feed_forward",
    "is_decoder", "return_dict", "text_config", "_name_or_path", "transformers_version", "attribute_map", "sub_configs",
)  # fmt: skip
_VALUES = (
    10**9, 10**12, 2**70, -1, 0, 1e30, float("nan"), "abc", "", None, True, [], [1, 2], {}, {"a": 1}, [[[]]], "9" * 1000,
    10**6, 3.5,
)  # fmt: skip


def configurations(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Configurations of small models with one entry that is absurd, of another type, or not theirs."""
    draw = random.Random(seed)
    for _ in range(count):
        found = dict(draw.choice(_CONFIGS))
        found[draw.choice([*found, *_MORE])] = draw.choice(_VALUES)
        yield found
