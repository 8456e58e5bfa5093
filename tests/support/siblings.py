"""Cases that `make test` leaves to `make test-slow`, though each takes but seconds: others of the same test show the same.

Of each test and of each engine some case stays. The keys are tests; the lists are the cases, as pytest names them in brackets.
A case that is not there any more stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

__all__ = ["SIBLINGS", "mark_siblings"]

_MODELS = ("static-bert-eager", "static-resnet18-eager", "static-vit-eager")
_BILINEAR = "Bilinear(in1_features=4, in2_features=4, out_features=4, bias={})-{}"
_COMPOSITES = ("gradient", "lfp", "lfp-epsilon", "epsilon-plus")

SIBLINGS: dict[str, Sequence[str]] = {
    "test_attribution_conservation.py::test_relevance_adds_up": (
        "cp-lrp-lstm", "cp-lrp-vgg-bn", "epsilon-plus-bert", "epsilon-plus-lenet",
    ),
    "test_batching.py::test_joined_equals_apart": ("lstm",),
    "test_edges.py::test_changes_after_the_wrap": (
        "auto-_replaced_forward", "auto-_assigned", "static-_new_parts", "static-_copied_part", "static-_hook",
        "regional-_new_parts", "regional-_copied_part", "regional-_assigned", "regional-_replaced_forward",
    ),
    "test_edges.py::test_compiled": (
        "static-part.compile", "static-compiled before", "static-torch.compile",
        "regional-model.compile", "regional-torch.compile", "regional-compiled before",
    ),
    "test_edges.py::test_a_wrapped_model_inside_another": ("regional",),
    "test_edges.py::test_copies": ("regional",),
    "test_edges.py::test_explanation_is_consistent": ("regional",),
    "test_edges.py::test_threads": ("regional",),
    "test_flatness.py::test_forty_steps_are_flat": ("mlp-live",),
    "test_hf_trainer.py::test_copies_stay_wrapped": ("static-pickle",),
    "test_hf_trainer.py::test_trainer": ("static-bert", "live-vit"),
    "test_joined_parts.py::test_equals_the_live_walk": (
        *(f"lfp-min-{n}" for n in ("of a whole as well", "all", "backwards", "one twice", "negative places", "some")),
        *(f"gradient-fast-{n}" for n in ("of a whole as well", "all", "backwards", "one twice", "two dimensions", "some")),
    ),
    "test_lxt_efficient.py::test_equals_lxt": ("llama",),
    "test_memory.py::test_batch_norms_are_made_again_from_their_statistics": (
        "1-dtype0", "1-dtype2", "2-dtype1", "2-dtype2", "3-dtype0", "3-dtype1",
    ),
    "test_memory.py::test_same_feedback_less_kept": ("vit-0.0",),
    "test_models.py::test_bfloat16": ("static-bert",),
    "test_models.py::test_gradient_composite_equals_autograd": (
        "static-bert-eager", "static-gpt2-eager", "static-hf-resnet-eager",
    ),
    "test_models.py::test_outputs_equal_and_feedback_finite": _MODELS,
    "test_onnx_attribution.py::test_equals_attribute": (
        "text-attnlrp--1", "text-attnlrp-weights", "norm_cnn-epsilon-plus-predicted",
    ),
    "test_onnx_attribution.py::test_float64_equals_attribute": ("gamma",),
    "test_onnx_recurrent.py::test_recurrent_layers_equal_torch": ("gru-lfp-epsilon-3-options1",),
    "test_patterns.py::test_equal_to_one_trace": ("lfp-None", "lfp-epsilon-None", "gradient-None"),
    "test_recurrent_loops.py::test_a_static_layer_keeps_the_sum_of_its_products_if_that_is_all_that_is_read": (
        "1-lstm-lfp-epsilon-False", "1-tanh-lfp-True", "16384-lstm-lfp-True", "16384-gru-lfp-False",
    ),
    "test_recurrent_loops.py::test_a_secant_in_c_is_that_of_its_function": (
        "names0--0.25--0.25", "names0-0.5-0.5", "names1-0.5-0.25", "names1--0.25--0.25", "names2-0.5-0.5", "names2-0.5-0.25",
    ),
    "test_recurrent_steps.py::test_gradient_of_the_operation_is_autograds": ("lstm-options0-131072", "gru-options1-1"),
    "test_sizes.py::test_a_batch_of_none_at_a_batch_norm": ("static-first-train", "static-later-eval"),
    "test_sizes.py::test_batches_and_lengths_of_a_transformer": ("static-bert",),
    "test_sizes.py::test_no_rows_are_explained_by_each_rule": ("0",),
    "test_sizes.py::test_what_torch_cannot_differentiate_with_open_sizes_keeps_them_open": (
        *(_BILINEAR.format(True, c) for c in _COMPOSITES if c != "lfp"),
        *(_BILINEAR.format(False, c) for c in _COMPOSITES if c != "gradient"),
        *(f"Softshrink(0.1)-{c}" for c in _COMPOSITES if c != "lfp-epsilon"),
        *(f"Hardshrink(0.1)-{c}" for c in _COMPOSITES if c != "epsilon-plus"),
    ),
    "test_spiking.py::test_neurons_are_found": ("later-zero",),
    "test_spiking.py::test_lfp_takes_secants_of_spikes_and_nothing_of_resets": ("static-zero", "static-where"),
    "test_spiking.py::test_reward_on_silence_does_not_hang_on_epsilon": ("1e-06", "0.01"),
    "test_surrogate_steps.py::test_ten_steps": ("straight-through-cnn", "surrogate-mlp", "sltt-mlp"),
    "test_taken_apart.py::test_a_loop_has_the_numbers_of_its_steps": ("relu-lfp-epsilon-0.5",),
    "test_trace.py::test_stopped_values_are_constants_in_both_engines_and_in_a_record": tuple(
        f"{n}-lfp-epsilon" for n in ("no_grad", "detach", "inference", "itself", "frozen")
    ),
    "test_trainer.py::test_resumed_run_ends_in_the_same_weights": ("False-6",),
    "test_written_views.py::test_both_engines_as_if_nothing_was_written_in_place": (
        *(f"selected-{n}" for n in ("layer_and_activation", "a_part", "seen_through_another", "activation")),
        *(f"norm-{n}" for n in ("view_of_it", "layer_and_activation", "one")),
        *(f"einsum-{n}" for n in ("seen_through_another", "one", "activation")),
        *(f"expanded-{n}" for n in ("view_of_it", "one", "activation", "layer_and_activation")),
        *(f"pool-{n}" for n in ("seen_through_another", "layer_and_activation", "one")),
        *(f"max_pool-{n}" for n in ("layer_and_activation", "activation")),
        *(f"transposed-{n}" for n in ("layer_and_activation", "one")),
        *(f"kron-{n}" for n in ("view_of_it", "a_part", "one", "activation")),
        *(f"shuffled-{n}" for n in ("layer_and_activation", "one", "activation", "seen_through_another")),
    ),
    "test_written_views.py::test_to_be_asked_for_its_size_parts_no_function": tuple(
        f"lfp-epsilon-{n}" for n in ("of no part of it", "new", "of a comparison", "written to", "read")
    ),
}  # fmt: skip


def mark_siblings(items: Sequence[pytest.Item], whole: bool) -> None:
    """Mark what is in the table as slow.

    Args:
        whole: whether these are all tests of their files, so that a case that is missing is one that there is no more.

    Raises:
        pytest.UsageError: the table has a case of a collected file that is none.
    """
    left = {(test, case) for test, cases in SIBLINGS.items() for case in cases}
    files = {item.path.name for item in items}
    for item in items:
        name, _, case = item.name.partition("[")
        key = (f"{item.path.name}::{name}", case.removesuffix("]"))
        if key in left:
            item.add_marker(pytest.mark.slow)
            left.discard(key)
    gone = sorted(f"{test}[{case}]" for test, case in left if test.partition("::")[0] in files)
    if whole and gone:
        raise pytest.UsageError(f"tests/support/siblings.py names cases that are none: {', '.join(gone)}")
