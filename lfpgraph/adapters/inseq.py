"""inseq: our relevance as one of its methods, for each generated token. Importing this module is enough:

import inseq, lfpgraph.adapters.inseq
inseq.load_model(model, "lfpgraph").attribute("a text", attributed_fn="logit", composite="attnlrp")
"""

from __future__ import annotations

from typing import Any

from inseq.attr.feat.feature_attribution import FeatureAttribution
from inseq.data import CoarseFeatureAttributionStepOutput
from inseq.utils import Registry

from ..explain.attribution import attribute

__all__ = ["RelevanceAttribution"]


class _Rules(FeatureAttribution, Registry):
    """inseq sorts its methods by families; this is ours."""


class RelevanceAttribution(_Rules):
    """Relevance of the tokens read so far for what inseq's `attributed_fn` makes of the next one's logits."""

    method_name = "lfpgraph"

    def __init__(self, attribution_model: Any, **kwargs: Any) -> None:
        super().__init__(attribution_model, **kwargs)
        self.attribute_batch_ids = True

    def get_attribution_args(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """`composite`, `baseline` and `steps` are ours; the rest is inseq's."""
        ours: dict[str, Any] = {name: kwargs.pop(name) for name in ("composite", "baseline", "steps") if name in kwargs}
        return ours, kwargs

    def attribute_step(self, attribute_fn_main_args: dict[str, Any], attribution_args: dict[str, Any] = {}) -> Any:  # noqa: B006
        """One generated token of each text."""
        outer, more = self.attribution_model, list(attribute_fn_main_args["additional_forward_args"])
        named = {}
        if outer.is_encoder_decoder:
            if len(attribute_fn_main_args["inputs"]) == 1:
                more.pop(0)  # embeddings of the prefix, which are read again from its ids
            named = {"decoder_input_ids": more.pop(1), "decoder_attention_mask": more.pop(4)}
        ids, target, function, mask, _, names, *values = more
        inputs = {"input_ids": ids, "attention_mask": mask, **named, "use_cache": False}
        places = {f"encoder_{name}": inputs[name] for name in ("input_ids", "attention_mask")} if named else {}
        places |= named or {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        batch = outer.formatter.convert_args_to_batch(**places)

        def explained(output: Any) -> Any:
            asked = outer.formatter.format_step_function_args(
                outer, output, target.squeeze(-1), batch, is_attributed_fn=True
            )
            return function(asked, **dict(zip(names, values)))

        inputs = {name: value for name, value in inputs.items() if value is not None}
        found = attribute(outer.model, inputs, explained, **attribution_args)
        source, prefix = (found["input_ids"], found["decoder_input_ids"]) if named else (None, found["input_ids"])
        wanted = not named or len(attribute_fn_main_args["inputs"]) > 1
        return CoarseFeatureAttributionStepOutput(
            source_attributions=source, target_attributions=prefix if wanted else None
        )
