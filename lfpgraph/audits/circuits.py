"""Circuits: what a metric would become if one part of a model computed what it computes on another input.

Activation patching (`method="exact"`) runs the model once for each part. The other methods estimate all parts in one pass: the
signal at a part's output times its difference between both inputs. With gradients that is attribution patching, with the rules
of AttnLRP's kind RelP (Jafari et al. 2025), and with "deeplift" the signals are slopes between both runs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..errors import AttributionError, NonFiniteError, check_choice, check_count
from ..graph.calls import check_module
from .runs import OUTPUT, Runs

if TYPE_CHECKING:
    import networkx

__all__ = ["Patching", "patching"]

SITES = ("nodes", "heads", "positions", "edges")
_METHODS = {"relp": "cp-lrp"}


@dataclass
class Patching:
    """How the metric changes if a part of the clean run is replaced by what it is in the corrupt one.

    Attributes:
        sites, method: as asked for.
        clean, corrupt: the metric of both runs, for each sample [n] (or for all [1], if the metric returns one number).
        effects: by site: [n] for nodes and for edges, whose keys are pairs (writer, reader); [n, heads]; [n, positions].
        order: names in the order of running.
    """

    sites: Any
    method: str
    clean: Tensor
    corrupt: Tensor
    effects: dict[Any, Tensor]
    order: list[str] = field(default_factory=list)

    def top(self, most: int = 10) -> list[tuple[Any, float]]:
        """The sites with the largest effect, mean over samples: (name, effect), with (name, place) for heads and positions."""
        check_count("most", most, AttributionError)
        found: list[tuple[Any, float]] = []
        for name, effect in self.effects.items():
            mean = effect.mean(0)
            places = [()] if mean.dim() == 0 else list(torch.cartesian_prod(*map(torch.arange, mean.shape)).tolist())
            for place in places:
                index = tuple(place) if isinstance(place, list | tuple) else (place,)
                label = name if not index else (name, *index)
                found.append((label, float(mean[index])))
        return sorted(found, key=lambda pair: -abs(pair[1]))[:most]

    def correlation(self, other: Patching) -> float:
        """Pearson's correlation with another method's effects at the same sites, over all samples, sites and places."""
        if not isinstance(other, Patching):
            raise AttributionError(
                f"effects are compared with those of another lfpgraph.patching, not {type(other).__name__}"
            )
        names = [name for name in self.effects if name in other.effects]
        if not names or any(self.effects[name].shape != other.effects[name].shape for name in names):
            raise AttributionError(
                f"the effects do not belong together: of sites={self.sites!r} and sites={other.sites!r}, or of other samples"
            )
        a, b = (torch.cat([p.effects[name].flatten() for name in names]) for p in (self, other))
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    def circuit(self, most: int = 40) -> networkx.DiGraph:
        """The edges with the largest mean effect as a graph, for `lfpgraph.pictures.flow_drawing`.

        Raises:
            AttributionError: sites were not "edges".
        """
        import networkx

        check_count("most", most, AttributionError)
        if self.sites != "edges":
            raise AttributionError(f'a circuit is made of edges; call patching with sites="edges", not {self.sites!r}')
        edges = sorted(((name, float(e.mean())) for name, e in self.effects.items()), key=lambda pair: -abs(pair[1]))
        graph = networkx.DiGraph()
        kept = edges[:most]
        names = {name for pair, _ in kept for name in pair}
        for place, name in enumerate(name for name in self.order if name in names):
            graph.add_node(name, order=place)
        for (writer, reader), effect in kept:
            graph.add_edge(writer, reader, relevance=effect)
        for name, facts in graph.nodes(data=True):
            out, into = (sum(r for *_, r in e(name, data="relevance")) for e in (graph.out_edges, graph.in_edges))
            facts["relevance"] = into if name == OUTPUT else out
            facts["kept"] = 0.0 if name == OUTPUT else out - into
        return graph


def patching(
    model: nn.Module,
    clean: Any,
    corrupt: Any,
    metric: Any,
    sites: str | Sequence[str] = "nodes",
    method: str | Composite = "deeplift",
    *,
    modules: str | Sequence[str] = "*",
    on_missing: str = "derive",
    fallback: str = "error",
) -> Patching:
    """The effect on a metric of giving each part of a model the value that it has on another input.

    Args:
        model: in the mode it shall run in (`model.eval()`).
        clean, corrupt: two inputs as for `attribute`, of the same shapes; they may differ in float tensors and token ids. What
            else the model computes of token ids (masks, places of padding) is that of the clean input.
        metric: what is measured: a function of the model's output, best one number for each sample [n], such as a difference
            of logits; or any other target of `attribute`.
        sites: "nodes": the outputs of modules; "heads": of attention heads; "positions": of modules at each token or place;
            "edges": what a module writes, as one other module reads it through sums and views; or names of modules or nodes.
        method: "exact" runs the model for each site. Estimates in one pass: "deeplift" (slopes between both runs), "relp"
            (relevance: `cp-lrp`), "gradient" (attribution patching), or any other composite.
        modules: for nodes, heads and positions, which modules: patterns of their names (shell style, `*` crosses dots).
        on_missing: as for `wrap`. fallback: as for `lfpgraph.trace`.

    Raises:
        AttributionError: the inputs do not fit each other, nothing fits `sites`, or the target does not fit the output.
        NonFiniteError: the metric is NaN or infinite. InputError, TraceError, NoRuleError: as for `attribute`.
        CompositeError: an unknown method.
    """
    check_module(model, "patching", AttributionError)
    if isinstance(sites, str):
        check_choice("sites", sites, SITES, AttributionError)
    elif not isinstance(sites, list | tuple) or not sites:
        raise AttributionError(
            f"sites={sites!r} must be one of {', '.join(SITES)}, or a list of names of modules or nodes"
        )
    options = Options(on_missing, fallback, error=AttributionError)
    name = method.name if isinstance(method, Composite) else method
    composite = get_composite(
        "gradient" if method == "exact" else _METHODS.get(name, name) if isinstance(method, str) else method
    )
    with torch.no_grad(), torch.inference_mode(False):
        patterns = [modules] if isinstance(modules, str) else modules
        if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
            raise AttributionError(f"modules={modules!r} must be a pattern of names, or a list of them")
        runs = Runs(model, clean, corrupt, composite, sites, list(patterns), options)
        before, after = runs.measure(metric, runs.outputs(runs.env)), runs.measure(metric, runs.outputs(runs.other))
        if not bool(torch.cat([before, after]).isfinite().all()):
            raise NonFiniteError("the metric is NaN or infinite on the clean or on the corrupt input")
        effects: dict[Any, Tensor] = {}
        if sites == "edges":
            effects = runs.exact_edges(metric, before) if method == "exact" else runs.edges(metric)
        elif method == "exact":
            for site in runs.sites:

                def change(value: Tensor, node: fx.Node = site.node) -> Tensor:
                    return runs.rerun({node: value}, metric) - before

                effects[site.name] = site.exact(runs.of(site.node), change)
        else:
            signals = runs.signals(metric)
            effects = {s.name: s.effect(*runs.of(s.node), signals.get(s.node), len(before)) for s in runs.sites}
    order = [*dict.fromkeys(runs.name(node) for node in runs.graph.graph.nodes if node.op != "output"), OUTPUT]
    return Patching(sites, name, before, after, effects, order)
