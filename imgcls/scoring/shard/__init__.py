"""What a worker does: plan rows -> images -> predictions -> attempt -> commit."""
