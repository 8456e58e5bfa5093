"""What can be trusted: conservation, flow, faithfulness, comparison with other libraries."""
