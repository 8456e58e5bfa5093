"""How far an explanation can be trusted: conservation, flow, faithfulness, comparison with other libraries."""
